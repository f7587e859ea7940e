"""The vLLM adapter's worker side over real managers of one process, and its caches. No vLLM is needed."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from pair import MHA, Pair, paired, pools, same_pages
from pdcore_vllm.caches import Cache, layer_of
from pdcore_vllm.scheduler import Report, Room, Work
from pdcore_vllm.worker import Worker

from pdcore import Attention, KVPoll, KVReceiver, LayoutError, PageOrder


class HostTensor:
    """As much of a torch.Tensor as is looked at: a view of a numpy array."""

    layout, device = "torch.strided", SimpleNamespace(type="cpu", index=None)

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.ndim = array, array.shape, array.ndim
        self.dtype = f"torch.{array.dtype.name}"

    def __getitem__(self, index: int) -> HostTensor:
        return HostTensor(self.array[index])

    def stride(self) -> tuple[int, ...]:
        return tuple(step // self.array.itemsize for step in self.array.strides)

    def transpose(self, one: int, other: int) -> HostTensor:
        return HostTensor(self.array.swapaxes(one, other))

    def is_contiguous(self) -> bool:
        return self.array.flags.c_contiguous

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


def cache(tensors: dict[str, HostTensor], heads: int = 4) -> Cache:
    return Cache.of(tensors, 8, 16, heads, {"model": "m"})  # type: ignore[arg-type] # as much as is looked at


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
        {"layers.0.attn": first, "layers.1.attn": lying(8, 1, 16, 72), "layers.2.attn": first}, heads=0
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
            "2 tensors of 2 layers",
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


Ended = tuple[set[str], set[str]]


def until(worker: Worker, there: Callable[[Ended, Report], bool]) -> tuple[Ended, Report]:
    """Look as idle steps do, until what was seen together is enough."""
    received, failed = set[str](), set[str]()
    report, end = Report(), time.monotonic() + 30
    while not there((received, failed), report):
        assert time.monotonic() < end, (received, failed, report)
        now = worker.ended(idle=True)
        received, failed = received | now[0], failed | now[1]
        report = report.merged(worker.report())
    return (received, failed), report


def loaded(worker: Worker) -> tuple[Ended, Report]:
    return until(worker, lambda ended, _: bool(ended[0]))


def released(worker: Worker) -> tuple[Ended, Report]:
    return until(worker, lambda _, report: bool(report.safe))


def load(pair: Pair, room: int, *blocks: int, prefix: int = 0) -> Work:
    return Work([Room("d", room, blocks, pair.bootstrap.address, prefix)])


def send(room: int, *blocks: int) -> Work:
    return Work([Room("p", room, blocks)])


def test_blocks_come_over_behind_a_prefix(pair: Pair, workers: tuple[Worker, Worker]) -> None:
    prefill, decode = workers
    decode.begin(load(pair, 1, 9, 8, prefix=MHA.page_size))
    prefill.begin(send(1, 3, 4, 5))
    assert loaded(decode) == (({"d"}, set()), Report())
    assert released(prefill) == ((set(), set()), Report(safe=Counter([("p", 1)])))
    assert same_pages(pair.prefill.pools, [4, 5], pair.decode.pools, [9, 8])
    for worker in workers:
        figures = worker.figures()
        assert figures["success"] == 1
        assert figures["bytes"] > 0
        assert worker.figures() == {}


def test_what_decode_declines_is_free_on_prefill_at_once(
    pair: Pair, workers: tuple[Worker, Worker], caplog: pytest.LogCaptureFixture
) -> None:
    prefill, decode = workers
    prefill.begin(send(2, 3))
    decode.begin(Work(declines=[(Room("d", 2, (), pair.bootstrap.address), "it has all")]))
    released(prefill)
    assert prefill.figures() == {"declined": 1}
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], "nothing is wrong"


def test_an_aborted_load_ends_on_both_sides(pair: Pair, workers: tuple[Worker, Worker]) -> None:
    prefill, decode = workers
    decode.begin(load(pair, 3, 9))
    decode.begin(Work(aborts=[("d", 3), ("unknown", 3)]))
    assert loaded(decode)[0] == ({"d"}, {"d"})
    prefill.begin(send(3, 3))
    released(prefill)


def test_two_sends_of_one_name_are_told_apart(pair: Pair, workers: tuple[Worker, Worker]) -> None:
    prefill, decode = workers
    prefill.begin(send(11, 3))
    prefill.begin(send(12, 4))
    for room, source, target in ((12, 4, 8), (11, 3, 9)):
        decode.begin(load(pair, room, target))
        assert loaded(decode)[0] == ({"d"}, set())
        assert released(prefill)[1].safe == Counter([("p", room)])
        assert same_pages(pair.prefill.pools, [source], pair.decode.pools, [target])


@pytest.mark.parametrize(
    ("bootstrap", "room", "why"),
    [
        ("nonsense", 4, "it has no port"),
        ("10.0.0.1:9", -1, "no room id"),
        ("10.0.0.1:9", 2**70, "no room id"),
    ],
)
def test_a_load_that_cannot_begin_has_failed(
    workers: tuple[Worker, Worker], bootstrap: str, room: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, decode = workers
    decode.begin(Work([Room("d", room, (9,), bootstrap)]))
    ended, report = loaded(decode)
    assert ended == ({"d"}, {"d"})
    assert why in report.failures["d"]
    assert "\n" not in report.failures["d"]
    assert "the KV cache of request d did not come over" in caplog.text
    assert decode.figures() == {"refused": 1}


def test_a_room_that_is_open_already_fails_the_second_request_alone(
    pair: Pair, workers: tuple[Worker, Worker]
) -> None:
    prefill, decode = workers
    work = load(pair, 5, 9)
    work.rooms.append(Room("e", 5, (10,), pair.bootstrap.address))
    decode.begin(work)
    assert loaded(decode)[0] == ({"e"}, {"e"})
    prefill.begin(send(5, 3))
    assert loaded(decode)[0] == ({"d"}, set())
    released(prefill)


def test_a_defect_fails_its_request_alone(
    pair: Pair, workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, decode = workers
    monkeypatch.setattr(decode, "_pages", lambda blocks: 1 // 0)
    decode.begin(load(pair, 6, 9))
    ended, report = loaded(decode)
    assert ended == ({"d"}, {"d"})
    assert "ZeroDivisionError" in report.failures["d"]


def test_blocks_that_are_not_safe_are_told_of_until_they_are(
    pair: Pair, workers: tuple[Worker, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, decode = workers
    with monkeypatch.context() as patch:
        patch.setattr(KVReceiver, "release_safe", lambda self: False)
        decode.begin(load(pair, 7, 9, 10))
        decode.begin(Work(aborts=[("d", 7)]))
        ended, report = loaded(decode)
        assert ended == ({"d"}, {"d"}), "vLLM need not wait"
        assert report.unsafe == Counter([("d", 7)])
        assert decode.ended(idle=True) == (set(), set())
        assert not decode.report()
    assert released(decode)[1].safe == Counter([("d", 7)])


def test_a_room_that_cannot_tell_has_failed_and_its_blocks_stay_out(
    pair: Pair,
    workers: tuple[Worker, Worker],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(self: KVReceiver) -> KVPoll:
        raise RuntimeError("a defect")

    _, decode = workers
    decode.begin(load(pair, 8, 9))
    with monkeypatch.context() as patch:
        patch.setattr(KVReceiver, "poll", broken)
        ended, report = decode.ended(idle=True), decode.report()
    assert ended == ({"d"}, {"d"})
    assert report == Report(Counter([("d", 8)]), Counter(), {"d": "RuntimeError('a defect')"})
    assert "cannot tell how it stands" in caplog.text
