"""The vLLM adapter's connector over stand-ins of vLLM's classes: two engines' steps, in one process."""

from __future__ import annotations

import logging
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import prometheus_client
import pytest

sys.path.append(str(Path(__file__).parents[1] / "stand_ins"))  # appended: a real engine wins

import pdcore_vllm
from pdcore_vllm import connector as module
from pdcore_vllm.config import UnsupportedError
from pdcore_vllm.connector import PdcoreConnector, StepReport, StepWork
from pdcore_vllm.figures import PdcoreStats
from pdcore_vllm.log import join_log
from pdcore_vllm.scheduler import Report
from test_vllm_worker import HostTensor, lying
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import RequestStatus

from pdcore import ConfigError, RoomId

LAYERS = ("model.layers.0.self_attn.attn", "model.layers.1.self_attn.attn")
BLOCKS, HEADS, TOKENS, CONTENT = 16, 2, 4, 8


class FullAttentionSpec:
    """Of it, only the name counts."""


class Group:
    """A group of one rank."""

    world_size, rank_in_group = 1, 0

    def broadcast_object(self, obj: Any = None, src: int = 0) -> Any:
        return obj


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stand-ins do not do: keep what a connector is made with, and say where it runs."""

    def keep(self: Any, vllm_config: Any, role: Any, kv_cache_config: Any = None) -> None:
        self._vllm_config, self._role, self._kv_cache_config = vllm_config, role, kv_cache_config
        self._kv_transfer_config, self._connector_metadata = vllm_config.kv_transfer_config, None

    monkeypatch.setattr(KVConnectorBase_V1, "__init__", keep)
    monkeypatch.setattr(module, "get_tp_group", Group)
    monkeypatch.setattr(module, "get_pp_group", Group)
    monkeypatch.setattr(module, "get_ip", lambda: "127.0.0.1")


def engine_config(role: str, **extra: Any) -> Any:
    model = SimpleNamespace(
        model="/models/tiny",
        revision=None,
        quantization=None,
        use_mla=False,
        hf_text_config=SimpleNamespace(to_dict=lambda: {"hidden_size": 16}),
        get_total_num_kv_heads=lambda: HEADS,
    )
    return SimpleNamespace(
        kv_transfer_config=SimpleNamespace(
            kv_role=role,
            is_kv_producer=role == "kv_producer",
            is_kv_consumer=role == "kv_consumer",
            kv_connector_extra_config={"backend": "local", **extra},
        ),
        parallel_config=SimpleNamespace(
            world_size=1,
            prefill_context_parallel_size=1,
            decode_context_parallel_size=1,
            data_parallel_index=0,
        ),
        cache_config=SimpleNamespace(block_size=TOKENS, cache_dtype="auto"),
        model_config=model,
    )


CACHE = SimpleNamespace(
    num_blocks=BLOCKS,
    transfer_groups=[SimpleNamespace(kv_cache_spec=FullAttentionSpec())],
    transfer_group_ids=(0,),
)


class Blocks:
    """vLLM's block pool and the blocks of a request, as far as they are asked."""

    def __init__(self) -> None:
        self.blocks: Sequence[int] = range(BLOCKS)
        self.held: list[int] = []

    def touch(self, blocks: Sequence[int]) -> None:
        self.held += blocks

    def free_blocks(self, ordered_blocks: Sequence[int]) -> None:
        for block in ordered_blocks:
            self.held.remove(block)


@attrs.define
class Engine:
    """An engine's two connectors, and the steps that vLLM would make with them."""

    scheduler: PdcoreConnector
    worker: PdcoreConnector
    tensors: list[HostTensor]
    pool: Blocks = attrs.field(factory=Blocks)

    @classmethod
    def started(cls, role: str, **extra: Any) -> Engine:
        config = engine_config(role, **extra)
        tensors = [lying(BLOCKS, HEADS, TOKENS, CONTENT) for _ in LAYERS]
        worker = PdcoreConnector(config, KVConnectorRole.WORKER, CACHE)  # type: ignore[arg-type] # as far as asked
        worker.register_kv_caches(dict(zip(LAYERS, tensors, strict=True)))  # type: ignore[arg-type] # no torch
        scheduler = PdcoreConnector(config, KVConnectorRole.SCHEDULER, CACHE)  # type: ignore[arg-type] # as far as asked
        made = cls(scheduler, worker, tensors)
        scheduler.bind_gpu_block_pool(made.pool)  # type: ignore[arg-type] # as far as asked
        told = worker.get_handshake_metadata()
        if told is not None:
            scheduler.set_xfer_handshake_metadata_pp_aware({(0, 0): pickle.loads(pickle.dumps(told))})
        return made

    def step(self, tokens: int = 0, computes: Callable[[], object] = bool) -> KVConnectorOutput:
        """Make one step, as vLLM does it across its processes; ``computes`` is its forward."""
        output = SimpleNamespace(total_num_scheduled_tokens=tokens)
        metadata = self.scheduler.build_connector_meta(output)  # type: ignore[arg-type] # as far as asked
        self.worker.bind_connector_metadata(pickle.loads(pickle.dumps(metadata)))
        computes()
        self.worker.start_load_kv(None)
        results = self.worker.get_transfer_results(set())
        told = KVConnectorOutput(
            finished_sending=results.finished_sending,
            finished_recving=results.finished_recving,
            failed_recving=results.failed_recving,
            kv_connector_worker_meta=pickle.loads(pickle.dumps(self.worker.build_connector_worker_meta())),
            kv_connector_stats=self.worker.get_kv_connector_stats(),
        )
        self.scheduler.update_connector_output(told)
        return told

    def stop(self) -> None:
        self.worker.shutdown()
        self.scheduler.shutdown()


def request(name: str, params: dict[str, Any] | None, tokens: int = 10) -> Any:
    return SimpleNamespace(
        request_id=name,
        kv_transfer_params=params,
        num_prompt_tokens=tokens,
        status=RequestStatus.FINISHED_LENGTH_CAPPED,
    )


def blocks(*ids: int) -> Any:
    return SimpleNamespace(get_block_ids=lambda: (list(ids),))


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    with pytest.MonkeyPatch.context() as patch:
        _vllm.__wrapped__(patch)  # type: ignore[attr-defined] # the fixture's own function
        prefill, decode = Engine.started("kv_producer"), Engine.started("kv_consumer")
        serve(prefill, decode, "warm", [1], [2], 4)
    yield prefill, decode
    prefill.stop()
    decode.stop()


def serve(
    prefill: Engine, decode: Engine, name: str, source: list[int], target: list[int], tokens: int = 10
) -> KVConnectorOutput:
    """Have a prompt computed on one engine and loaded on the other; return what decode's workers said."""
    _, params = prefill.scheduler.request_finished(request(name, {"do_remote_decode": True}, tokens), source)
    assert prefill.pool.held == source
    prefill.step()
    asked = request(name, params, tokens)
    assert decode.scheduler.get_num_new_matched_tokens(asked, 0) == (tokens, True)
    decode.scheduler.update_state_after_alloc(asked, blocks(*target), tokens)
    told = decode.step()
    while not told.finished_recving:
        told = decode.step()
    assert told.finished_recving == {name}
    while prefill.pool.held:
        assert prefill.scheduler.has_pending_push_work()
        prefill.step()
    assert not prefill.scheduler.has_pending_push_work()
    return told


def test_a_prompts_blocks_come_over(engines: tuple[Engine, Engine]) -> None:
    prefill, decode = engines
    for tensor in prefill.tensors:
        tensor.array[:] = np.random.default_rng(3).random(tensor.array.shape, np.float32)
    told = serve(prefill, decode, "a", [3, 9, 4], [7, 5, 6])
    for left, right in zip(prefill.tensors, decode.tensors, strict=True):
        assert (left.array[[3, 9, 4]] == right.array[[7, 5, 6]]).all()
    assert not told.failed_recving
    stats = told.kv_connector_stats
    assert stats is not None
    assert not stats.is_empty()
    assert stats.aggregate(PdcoreStats({"success": 2, "aux": 1})).reduce()["success"] == 3


def test_a_transfer_does_not_wait_for_a_step_of_others(engines: tuple[Engine, Engine]) -> None:
    prefill, decode = engines
    _, params = prefill.scheduler.request_finished(request("s", {"do_remote_decode": True}), [3, 9, 4])
    asked = request("s", params)
    assert decode.scheduler.get_num_new_matched_tokens(asked, 0) == (10, True)
    decode.scheduler.update_state_after_alloc(asked, blocks(7, 5, 6), 10)

    def until_the_load_is_over() -> None:
        while not decode.step().finished_recving:
            pass

    prefill.step(2048, computes=until_the_load_is_over)
    assert not prefill.pool.held


def test_vllm_counts_what_workers_tell() -> None:
    registry = prometheus_client.CollectorRegistry()
    counter = partial(prometheus_client.Counter, registry=registry)
    metric_types: dict[Any, Any] = {prometheus_client.Counter: counter}
    metrics = PdcoreConnector.build_prom_metrics(
        engine_config("kv_consumer"), metric_types, ["engine"], {0: ["e"]}
    )
    for _ in range(2):
        metrics.observe({"success": 3, "aborted": 1, "microseconds": 5_000, "bytes": 7})
    metrics.observe({"success": "many"})  # a defect of ours is no failure of vLLM's
    page = [
        line
        for line in prometheus_client.generate_latest(registry).decode().splitlines()
        if "_total{" in line
    ]
    assert page == [
        'vllm:pdcore_rooms_total{engine="e",outcome="success"} 6.0',
        'vllm:pdcore_rooms_total{engine="e",outcome="aborted"} 2.0',
        'vllm:pdcore_transfer_seconds_total{engine="e"} 0.01',
        'vllm:pdcore_transfer_bytes_total{engine="e"} 14.0',
    ]


def test_a_failed_load_fails_its_request_with_our_reason(engines: tuple[Engine, Engine]) -> None:
    _, decode = engines
    params = {"do_remote_prefill": True, "pdcore_bootstrap": "nowhere", "pdcore_room": 5}
    asked = request("b", params)
    decode.scheduler.update_state_after_alloc(asked, blocks(1, 2, 3), 10)
    told = decode.step()
    assert told.finished_recving == told.failed_recving == {"b"}
    keep, answer = decode.scheduler.request_finished(asked, [1, 2, 3])
    assert not keep
    assert answer is not None
    assert "'nowhere'" in answer["pdcore_failure"]


def test_nothing_that_breaks_reaches_the_engine(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, decode = engines
    scheduler, worker = decode.scheduler, decode.worker
    monkeypatch.setattr(scheduler, "_schedule", None)
    monkeypatch.setattr(worker, "_worker", object())
    asked = request("c", {"do_remote_prefill": True})
    assert scheduler.get_num_new_matched_tokens(asked, 0) == (0, False)
    scheduler.update_state_after_alloc(asked, blocks(1), 10)
    assert scheduler.build_connector_meta(None) == StepWork()  # type: ignore[arg-type] # nothing
    scheduler.update_connector_output(None)  # type: ignore[arg-type] # nothing
    assert scheduler.request_finished(asked, [1]) == (False, None)
    assert not scheduler.has_pending_push_work()
    worker.bind_connector_metadata(StepWork())
    assert worker.get_transfer_results(set()).finished_recving == set()
    assert worker.build_connector_worker_meta() is None
    assert worker.get_kv_connector_stats() is None
    failures = [r for r in caplog.records if "the engine goes on without it" in r.getMessage()]
    assert len(failures) == 10
    assert "PdcoreConnector.bind_connector_metadata failed" in caplog.text


def test_a_room_that_is_taken_on_prefill_fails_its_send_alone(engines: tuple[Engine, Engine]) -> None:
    prefill, _ = engines
    assert prefill.worker._worker is not None
    taken = prefill.worker._worker.manager.sender(RoomId(77))  # type: ignore[union-attr] # it is prefill's
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secrets.randbits", lambda bits: 77)
        prefill.scheduler.request_finished(request("d", {"do_remote_decode": True}), [1, 2, 3])
    prefill.step()
    assert prefill.pool.held == []
    taken.clear()


def test_what_cannot_work_is_refused_when_the_engine_starts() -> None:
    config = engine_config("kv_both")
    with pytest.raises(UnsupportedError, match="kv_both"):
        PdcoreConnector(config, KVConnectorRole.SCHEDULER, CACHE)  # type: ignore[arg-type] # as far as asked
    config = engine_config("kv_consumer", backend=None, lease=-1)
    with pytest.raises(ConfigError, match="2 wrong values"):
        PdcoreConnector(config, KVConnectorRole.SCHEDULER, CACHE)  # type: ignore[arg-type] # as far as asked


def test_the_caches_of_unequal_ranks_have_their_heads_apart() -> None:
    assert PdcoreConnector.get_required_kvcache_layout(engine_config("kv_consumer")) == "LBHNC"
    config = engine_config("kv_consumer")
    config.model_config.use_mla = True
    assert PdcoreConnector.get_required_kvcache_layout(config) is None


def test_reports_of_several_workers_are_one() -> None:
    one = StepReport(Report(safe=Counter([("a", 1)])))
    assert one.aggregate(one) == StepReport(Report(safe=Counter({("a", 1): 2})))


def test_pdcores_lines_come_out_as_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = logging.getLogger("pdcore"), logging.getLogger("vllm")
    handler = logging.NullHandler()
    monkeypatch.setattr(theirs, "handlers", [handler])
    monkeypatch.setattr(theirs, "level", logging.INFO)
    for name, value in (("handlers", []), ("propagate", True), ("level", logging.NOTSET)):
        monkeypatch.setattr(ours, name, value)
    join_log()
    assert ours.handlers == [handler]
    assert ours.level == logging.INFO
    assert not ours.propagate


def test_the_connector_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: dict[str, tuple[str, str]] = {}

    def register(name: str, module_path: str, class_name: str) -> None:
        registered[name] = (module_path, class_name)

    monkeypatch.setattr(KVConnectorFactory, "_registry", registered)
    monkeypatch.setattr(KVConnectorFactory, "register_connector", register)
    pdcore_vllm.register()
    pdcore_vllm.register()
    assert registered == {"PdcoreConnector": ("pdcore_vllm.connector", "PdcoreConnector")}
