"""The class that vLLM loads. It names vLLM's classes, and hands plain values to those who decide.

While the engine serves, nothing here raises; what cannot work is refused when the engine starts.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1 import base
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.utils.network_utils import get_ip
from vllm.v1.request import RequestStatus

from pdcore import Topology
from pdcore.layout.fingerprint import model_fingerprint
from pdcore.rooms.containment import contained
from pdcore_vllm.caches import Cache
from pdcore_vllm.config import Settings, check_engine
from pdcore_vllm.figures import PdcoreMetrics, PdcoreStats
from pdcore_vllm.log import join_log
from pdcore_vllm.managers import start
from pdcore_vllm.scheduler import Report, Schedule, Work
from pdcore_vllm.worker import Worker

if TYPE_CHECKING:
    import torch
    from vllm.config.vllm import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

__all__ = ["PdcoreConnector"]

Handshake = base.KVConnectorHandshakeMetadata
COMPLETE = (RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED)


@dataclass
class StepWork(base.KVConnectorMetadata):
    """Scheduler to workers, in each step."""

    work: Work = field(default_factory=Work)


@dataclass
class StepReport(base.KVConnectorWorkerMetadata):
    """Workers to scheduler, when there is something to tell."""

    report: Report

    def aggregate(self, other: base.KVConnectorWorkerMetadata) -> base.KVConnectorWorkerMetadata:
        return StepReport(self.report.merged(other.report)) if isinstance(other, StepReport) else self


@dataclass
class BootstrapAddress(Handshake):
    """Workers to scheduler, once: where decode finds this engine."""

    address: str


class PdcoreConnector(base.KVConnectorBase_V1):
    """vLLM's KV connector over pdcore: one object in the scheduler, and one in each worker.

    It does not say that it supports vLLM's hybrid KV cache manager: then vLLM keeps the tokens of all layers
    alike, those with a sliding window too, and a request has one list of blocks.

    Raises at construction and in ``register_kv_caches``, which is when the engine starts:
        PDCoreError: this engine, its model or the configuration is not supported; and how to go on.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: base.KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        join_log()
        parallel = vllm_config.parallel_config
        caches = tuple(type(group.kv_cache_spec).__name__ for group in kv_cache_config.transfer_groups)
        context = max(parallel.prefill_context_parallel_size, parallel.decode_context_parallel_size)
        check_engine(vllm.__version__, str(self._kv_transfer_config.kv_role), caches, context)
        self._settings = Settings.load(self._kv_transfer_config.kv_connector_extra_config, get_ip)
        size, loads = vllm_config.cache_config.block_size, self._kv_transfer_config.is_kv_consumer
        self._schedule = Schedule(size, parallel.world_size, loads=loads)
        self._worker: Worker | None = None
        self._address, self._company = "", ExitStack()

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: VllmConfig) -> str | None:
        # The heads of a page lie apart, so that ranks of unequal TP cut it in few pieces.
        return None if vllm_config.model_config is None or vllm_config.model_config.use_mla else "LBHNC"

    # --- in the scheduler ------------------------------------------------------------------------

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Handshake]) -> None:
        for told in metadata.values():
            if isinstance(told, BootstrapAddress):
                self._schedule.bootstrap = told.address

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        self._schedule.pool = gpu_block_pool

    @contained(lambda: (0, False))
    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        missing = request.num_prompt_tokens - num_computed_tokens
        tokens = self._schedule.matched(request.request_id, request.kv_transfer_params, missing)
        return tokens, bool(tokens)

    @contained(lambda: None)
    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        params, tokens = request.kv_transfer_params, request.num_prompt_tokens
        if params:
            (ids,) = blocks.get_block_ids() or ([],)
            self._schedule.allocated(request.request_id, params, ids, tokens, num_external_tokens)

    @contained(StepWork)
    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> base.KVConnectorMetadata:
        return StepWork(self._schedule.work(idle=not scheduler_output.total_num_scheduled_tokens))

    @contained(lambda: None)
    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        told = connector_output.kv_connector_worker_meta
        received, report = connector_output.finished_recving or (), getattr(told, "report", Report())
        self._schedule.reported(received, report)

    @contained(lambda: (False, None))
    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        complete = request.status in COMPLETE and self._kv_transfer_config.is_kv_producer
        name, params, tokens = request.request_id, request.kv_transfer_params, request.num_prompt_tokens
        # False: vLLM lets go of the blocks; a transfer holds them by a reference of its own.
        return False, self._schedule.finished(name, params, block_ids, tokens, complete=complete)

    @contained(lambda: False)
    def has_pending_push_work(self) -> bool:
        return self._schedule.watching

    # --- in the workers --------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        config, own, tp, pp = self._vllm_config, self._settings.own, get_tp_group(), get_pp_group()
        model, dtype = config.model_config, str(config.cache_config.cache_dtype)
        assert model is not None  # an engine that has a cache has a model
        facts = {"revision": model.revision, "quantisation": model.quantization, "cache_dtype": dtype}
        made_by = own.fingerprint or model_fingerprint(
            model.model, model.hf_text_config, **facts, cache_format="vllm"
        )
        heads = 0 if model.use_mla else model.get_total_num_kv_heads()
        blocks, size = self._kv_cache_config.num_blocks, config.cache_config.block_size
        cache = Cache.of(kv_caches, blocks, size, heads, made_by)
        prefills = self._kv_transfer_config.is_kv_producer
        agree = (lambda told: pp.broadcast_object(tp.broadcast_object(told))) if prefills else None
        topology = Topology(tp.world_size, tp.rank_in_group, pp.world_size, pp.rank_in_group)
        engine = config.parallel_config.data_parallel_index
        manager, self._address, self._company = start(self._settings, cache.pools, topology, agree, engine)
        self._worker = Worker(manager, cache.pages, own.lease)

    def get_handshake_metadata(self) -> Handshake | None:
        return BootstrapAddress(self._address) if self._address else None

    @contained(lambda: None)
    def bind_connector_metadata(self, connector_metadata: base.KVConnectorMetadata) -> None:
        self._connector_metadata = connector_metadata
        if self._worker is not None and isinstance(connector_metadata, StepWork):
            self._worker.begin(connector_metadata.work)

    def start_load_kv(self, forward_context: object, **kwargs: Any) -> None:
        """Rooms are open by now: vLLM calls this when the step has computed, on a CPU some 0.1 s later."""

    @contained(base.KVConnectorTransferResults)
    def get_transfer_results(self, finished_req_ids: set[str]) -> base.KVConnectorTransferResults:
        step, results = self._connector_metadata, base.KVConnectorTransferResults()
        if self._worker is not None and isinstance(step, StepWork):
            results.finished_recving, results.failed_recving = self._worker.ended(idle=step.work.idle)
        return results

    @contained(lambda: None)
    def build_connector_worker_meta(self) -> base.KVConnectorWorkerMetadata | None:
        report = self._worker.report() if self._worker is not None else None
        return StepReport(report) if report else None

    @contained(lambda: None)
    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        figures = self._worker.figures() if self._worker is not None else None
        return PdcoreStats(figures) if figures else None

    @contained(lambda: None)
    def shutdown(self) -> None:
        self._worker = None
        self._company.close()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded by layer."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved by layer."""

    def wait_for_save(self) -> None:
        """Blocks are read where they lie, and kept until that has ended."""

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        return PdcoreStats(data or {})

    @classmethod
    def build_prom_metrics(cls, *given: Any, **named: Any) -> PdcoreMetrics:
        return PdcoreMetrics(*given, **named)
