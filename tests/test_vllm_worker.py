"""The vLLM adapter's worker side over real managers of one process, and its caches. No vLLM is needed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from pair import MHA, Pair, paired, pools, same_pages
from pdcore_vllm.caches import Cache, Tensor, layer_of
from pdcore_vllm.metrics import added, summary
from pdcore_vllm.scheduler import Decline, Load, Report, Send, Work
from pdcore_vllm.worker import Ended, Worker

from pdcore import Attention, KVPoll, KVReceiver, LayoutError, PageOrder, RoomId


class HostTensor:
    """As much of a torch.Tensor as is looked at: a view of a numpy array."""

    layout, device = "torch.strided", SimpleNamespace(type="cpu", index=None)

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape = array.shape
        self.dtype = f"torch.{array.dtype.name}"

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def permute(self, *dims: int) -> Tensor:
        return HostTensor(self.array.transpose(dims))

    def data_ptr(self) -> int:
        return int(self.array.ctypes.data)

    def element_size(self) -> int:
        return self.array.itemsize

    def numel(self) -> int:
        return self.array.size


def lying(*shape: int, order: Sequence[int] = (0, 1, 2, 3)) -> HostTensor:
    """Return a tensor of a logical shape that lies in memory in another order of its dimensions."""
    flat = np.zeros([shape[axis] for axis in order], np.float32)
    return HostTensor(flat.transpose(np.argsort(order)))


def cache(tensors: dict[str, HostTensor], **more: object) -> Cache:
    given = {"blocks": 8, "block_size": 16, "kv_heads": 4, "latent": False, "fingerprint": {"model": "m"}}
    return Cache.of(tensors, **{**given, **more})  # type: ignore[arg-type] # what it is given is the test's


def named(count: int, make: Callable[[], HostTensor]) -> dict[str, HostTensor]:
    return {f"model.layers.{layer}.self_attn.attn": make() for layer in range(count)}


def test_pages_lie_as_vllms_strides_say() -> None:
    heads_first = cache(named(2, lambda: lying(8, 4, 16, 64))).pools.layout
    assert heads_first.order is PageOrder.HEAD_TOKEN_KV
    assert (heads_first.page_size, heads_first.num_pages, heads_first.dtype) == (16, 8, "float32")
    assert [(b.name, b.item_len) for b in heads_first.buffers] == [
        ("layer.0.kv", 4 * 16 * 64 * 4),
        ("layer.1.kv", 4 * 16 * 64 * 4),
    ]
    tokens_first = cache(named(2, lambda: lying(8, 4, 16, 64, order=(0, 2, 1, 3)))).pools.layout
    assert tokens_first.order is PageOrder.TOKEN_HEAD_KV
    assert tokens_first.fingerprint is not None


def test_pages_of_several_layers_may_lie_between_each_other() -> None:
    packed = np.zeros((8, 2, 4, 16, 64), np.float32)
    layers = {f"layers.{n}.attn": HostTensor(packed[:, n]) for n in (1, 0)}
    pools = cache(layers).pools
    assert [b.layer for b in pools.layout.buffers] == [0, 1]
    assert {b.item_stride for b in pools.layout.buffers} == {2 * 4 * 16 * 64 * 4}


def test_mla_is_latent_and_shared_memory_counts_once() -> None:
    first = lying(8, 1, 16, 72)
    made = cache(
        {"layers.0.attn": first, "layers.1.attn": lying(8, 1, 16, 72), "layers.2.attn": first}, latent=True
    )
    assert made.pools.layout.attention is Attention.LATENT
    assert [b.name for b in made.pools.layout.buffers] == ["layer.0.latent", "layer.1.latent"]


def test_a_block_is_several_pages_where_kernels_split_it() -> None:
    split = cache(named(1, lambda: lying(16, 4, 8, 64)))
    assert split.ratio == 2
    assert split.pages((3, 0)).tolist() == [6, 7, 0, 1]
    assert cache(named(1, lambda: lying(8, 4, 16, 64))).pages(()).tolist() == []


@pytest.mark.parametrize(
    ("tensors", "found"),
    [
        (named(1, lambda: lying(8, 4, 16, 64, order=(1, 0, 2, 3))), "layer 0 of shape"),
        (
            {"layers.0.attn": lying(8, 4, 16, 64), "layers.1.attn": lying(8, 4, 8, 64)},
            "(blocks, heads, tokens, type)",
        ),
        (named(1, lambda: lying(8, 4, 8, 64)), "8 pages of 8 tokens for 8 blocks of 16"),
        ({"embed": lying(8, 4, 16, 64)}, "a layer named 'embed'"),
        ({}, "0 tensors"),
    ],
)
def test_caches_of_another_kind_are_refused(tensors: dict[str, HostTensor], found: str) -> None:
    with pytest.raises(LayoutError, match="a kind that pdcore-vllm does not know") as refused:
        cache(tensors)
    assert found in refused.value.there_is
    assert "VLLM_KV_CACHE_LAYOUT" in refused.value.to_do


def test_the_layers_number_is_the_one_number_of_its_name() -> None:
    assert layer_of("model.layers.31.self_attn.attn") == 31
    with pytest.raises(LayoutError):
        layer_of("layers.1.experts.2")


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with paired(source=pools(MHA, None), target=pools(MHA, None)) as made:
        made.move(100, [0], [0], None)  # they are paired, and all threads run
        yield made


@pytest.fixture
def workers(pair: Pair) -> tuple[Worker, Worker]:
    def pages(blocks: tuple[int, ...]) -> np.ndarray:
        return np.asarray(blocks, np.int64)

    return Worker(pair.prefill, pages, 30.0), Worker(pair.decode, pages, 30.0)


def until(worker: Worker, there: Callable[[Ended, Report], bool]) -> tuple[Ended, Report]:
    """Look as idle steps do, until what was seen together is enough."""
    ended, report, end = Ended(), Report(), time.monotonic() + 30
    while not there(ended, report):
        assert time.monotonic() < end, (ended, report)
        now = worker.ended(idle=True)
        ended.received |= now.received
        ended.failed |= now.failed
        report = report.merged(worker.report() or Report())
    return ended, report


def test_blocks_come_over_behind_a_prefix(pair: Pair, workers: tuple[Worker, Worker]) -> None:
    prefill, decode = workers
    decode.begin(Work(loads=(Load("d", pair.bootstrap.address, 1, (9, 8), MHA.page_size),)))
    prefill.begin(Work(sends=(Send("p", 1, (3, 4, 5)),)))
    assert until(decode, lambda ended, _: bool(ended.received))[0] == Ended({"d"})
    assert until(prefill, lambda _, report: bool(report.safe))[1] == Report(safe={"p": 1})
    assert same_pages(pair.prefill.pools, [4, 5], pair.decode.pools, [9, 8])
    for worker in workers:
        data = worker.transfers.taken()
        assert data is not None
        assert data["outcomes"] == {"success": 1}
        assert worker.transfers.taken() is None


def test_what_decode_declines_is_free_on_prefill_at_once(
    pair: Pair, workers: tuple[Worker, Worker], caplog: pytest.LogCaptureFixture
) -> None:
    prefill, decode = workers
    prefill.begin(Work(sends=(Send("p", 2, (3,)),)))
    decode.begin(Work(declines=(Decline(pair.bootstrap.address, 2, "it has all"),)))
    until(prefill, lambda _, report: bool(report.safe))
    assert (prefill.transfers.taken() or {})["outcomes"] == {"declined": 1}
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], "nothing is wrong"


def test_an_aborted_load_ends_on_both_sides(pair: Pair, workers: tuple[Worker, Worker]) -> None:
    prefill, decode = workers
    decode.begin(Work(loads=(Load("d", pair.bootstrap.address, 3, (9,), 0),)))
    decode.begin(Work(aborts=("d", "unknown")))
    assert until(decode, lambda ended, _: bool(ended.received))[0].failed == {"d"}
    prefill.begin(Work(sends=(Send("p", 3, (3,)),)))
    until(prefill, lambda _, report: bool(report.safe))


@pytest.mark.parametrize(
    ("bootstrap", "room", "why"),
    [("nonsense", 4, "it has no port"), ("127.0.0.1:9", -1, "no room id"), ("", 2**70, "no room id")],
)
def test_a_load_that_cannot_begin_has_failed(
    workers: tuple[Worker, Worker], bootstrap: str, room: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, decode = workers
    decode.begin(Work(loads=(Load("d", bootstrap, room, (9,), 0),)))
    ended, report = until(decode, lambda ended, _: bool(ended.received))
    assert ended == Ended({"d"}, {"d"})
    assert why in report.failures["d"] or "address" in report.failures["d"]
    assert "\n" not in report.failures["d"]
    assert "the KV cache of request d did not come over" in caplog.text


def test_a_room_that_is_open_already_fails_the_second_request_alone(
    pair: Pair, workers: tuple[Worker, Worker]
) -> None:
    prefill, decode = workers
    load = Load("d", pair.bootstrap.address, 5, (9,), 0)
    decode.begin(Work(loads=(load, Load("e", pair.bootstrap.address, 5, (10,), 0))))
    assert until(decode, lambda ended, _: bool(ended.received))[0] == Ended({"e"}, {"e"})
    prefill.begin(Work(sends=(Send("p", 5, (3,)),)))
    assert until(decode, lambda ended, _: bool(ended.received))[0] == Ended({"d"})
    until(prefill, lambda _, report: bool(report.safe))


def test_a_defect_fails_its_request_alone(
    pair: Pair,
    workers: tuple[Worker, Worker],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, decode = workers
    monkeypatch.setattr(decode, "_pages", lambda blocks: 1 // 0)
    decode.begin(Work(loads=(Load("d", pair.bootstrap.address, 6, (9,), 0),)))
    ended, report = until(decode, lambda ended, _: bool(ended.received))
    assert ended == Ended({"d"}, {"d"})
    assert "ZeroDivisionError" in report.failures["d"]
    assert (decode.transfers.taken() or {})["outcomes"] == {"defect": 1}


def test_blocks_that_are_not_safe_are_told_of_until_they_are(
    pair: Pair, workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, decode = workers
    with monkeypatch.context() as patch:
        patch.setattr(KVReceiver, "release_safe", lambda self: False)
        decode.begin(Work(loads=(Load("d", pair.bootstrap.address, 7, (9, 10), 0),), aborts=("d",)))
        ended, report = until(decode, lambda ended, _: bool(ended.received))
        assert ended.failed == {"d"}, "vLLM need not wait"
        assert report.unsafe == {"d": ((9, 10), 1)}
        assert decode.ended(idle=True) == Ended()
        assert decode.report() is None
    assert until(decode, lambda _, report: bool(report.safe))[1].safe == {"d": 1}


def test_a_room_that_cannot_tell_has_failed_and_its_blocks_stay_out(
    pair: Pair,
    workers: tuple[Worker, Worker],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(self: KVReceiver) -> KVPoll:
        raise RuntimeError("a defect")

    _, decode = workers
    decode.begin(Work(loads=(Load("d", pair.bootstrap.address, 8, (9,), 0),)))
    with monkeypatch.context() as patch:
        patch.setattr(KVReceiver, "poll", broken)
        ended, report = decode.ended(idle=False), decode.report()
    assert ended == Ended({"d"}, {"d"})
    assert report == Report({"d": ((9,), 1)}, {}, {"d": "RuntimeError('a defect')"})
    assert "cannot tell how it stands" in caplog.text
    pair.decode.receiver(pair.bootstrap.address, RoomId(9)).clear()


def test_figures_of_workers_and_intervals_add_up() -> None:
    one = {"seconds": [0.25], "bytes": [2_000_000], "outcomes": {"success": 1}}
    other = {"seconds": [0.75], "bytes": [4_000_000], "outcomes": {"success": 1, "deadline": 2}}
    both = added(one, other)
    assert both["outcomes"] == {"success": 2, "deadline": 2}
    assert summary(both) == {
        "Transfers": 2,
        "Avg transfer (ms)": 500.0,
        "Max transfer (ms)": 750.0,
        "Avg MB per transfer": 3.0,
        "Failed (deadline)": 2,
    }
    assert summary(added({}, {"outcomes": {"aux": 1}})) == {"Transfers": 0, "Failed (aux)": 1}
