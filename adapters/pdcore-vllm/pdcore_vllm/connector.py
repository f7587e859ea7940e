"""The class that vLLM loads. It names vLLM's classes, and hands plain values to those who decide.

While the engine serves, nothing here raises; what cannot work is refused when the engine starts.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.utils.network_utils import get_ip
from vllm.v1.request import RequestStatus

from pdcore import Topology
from pdcore_vllm.caches import Cache
from pdcore_vllm.config import Engine, Settings, fingerprint_of
from pdcore_vllm.figures import PdcorePromMetrics, PdcoreStats
from pdcore_vllm.guard import contained
from pdcore_vllm.managers import Rank, start_decode, start_prefill
from pdcore_vllm.scheduler import Report, Schedule, Work
from pdcore_vllm.worker import Worker

if TYPE_CHECKING:
    import torch
    from vllm.config.vllm import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

__all__ = ["PdcoreConnector"]

COMPLETE = (RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED)


@dataclass
class StepWork(KVConnectorMetadata):
    """Scheduler to workers, in each step."""

    work: Work = field(default_factory=Work)


@dataclass
class StepReport(KVConnectorWorkerMetadata):
    """Workers to scheduler, when there is something to tell."""

    report: Report

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        return StepReport(self.report.merged(other.report)) if isinstance(other, StepReport) else self


@dataclass
class BootstrapAddress(KVConnectorHandshakeMetadata):
    """Workers to scheduler, once: where decode finds this engine."""

    address: str


class PdcoreConnector(KVConnectorBase_V1):
    """vLLM's KV connector over pdcore: one object in the scheduler, and one in each worker.

    It does not say that it supports vLLM's hybrid KV cache manager: then vLLM keeps the tokens of all layers
    alike, those with a sliding window too, and a request has one list of blocks.

    Raises at construction and in ``register_kv_caches``, which is when the engine starts:
        PDCoreError: this engine, its model or the configuration is not supported; and how to go on.
    """

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        join_log()
        transfer, parallel = self._kv_transfer_config, vllm_config.parallel_config
        Engine(
            version=vllm.__version__,
            role=str(transfer.kv_role),
            cache_groups=tuple(type(g.kv_cache_spec).__name__ for g in kv_cache_config.transfer_groups),
            context_parallel=max(
                parallel.prefill_context_parallel_size, parallel.decode_context_parallel_size
            ),
        ).check()
        self._settings = Settings.load(transfer.kv_connector_extra_config, get_ip)
        self._block_size: int = vllm_config.cache_config.block_size
        self._schedule = Schedule(self._block_size, parallel.world_size)
        self._rank: Rank | None = None
        self._worker: Worker | None = None

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: VllmConfig) -> str | None:
        # The heads of a page lie apart, so that ranks of unequal TP cut it in few pieces.
        return None if vllm_config.model_config is None or vllm_config.model_config.use_mla else "LBHNC"

    # --- in the scheduler ------------------------------------------------------------------------

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        for told in metadata.values():
            if isinstance(told, BootstrapAddress):
                self._schedule.bootstrap = told.address

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        self._schedule.holds.pool = gpu_block_pool

    def get_loaded_kv_cache_group_ids(self, request: Request) -> tuple[int, ...]:
        return self._kv_cache_config.transfer_group_ids

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
            (ids,) = blocks.get_block_ids() or ((),)
            self._schedule.allocated(request.request_id, params, ids, tokens, num_external_tokens)

    @contained(StepWork)
    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return StepWork(self._schedule.work(idle=not scheduler_output.total_num_scheduled_tokens))

    @contained(lambda: None)
    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        told = connector_output.kv_connector_worker_meta
        report = told.report if isinstance(told, StepReport) else None
        self._schedule.reported(connector_output.finished_recving or (), report)

    @contained(lambda: (False, None))
    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        # False: vLLM lets go of the blocks; a transfer holds them by a reference of its own.
        return False, self._schedule.finished(
            request.request_id,
            request.kv_transfer_params,
            block_ids,
            request.num_prompt_tokens,
            complete=request.status in COMPLETE and self._kv_transfer_config.is_kv_producer,
        )

    @contained(lambda: False)
    def has_pending_push_work(self) -> bool:
        return self._role is KVConnectorRole.SCHEDULER and self._schedule.holds.watched

    # --- in the workers --------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        config, settings = self._vllm_config, self._settings
        model, parallel = config.model_config, config.parallel_config
        assert model is not None  # an engine that has a cache has a model
        cache = Cache.of(
            kv_caches,
            blocks=self._kv_cache_config.num_blocks,
            block_size=self._block_size,
            kv_heads=model.get_total_num_kv_heads(),
            latent=model.use_mla,
            fingerprint=settings.fingerprint
            or fingerprint_of(
                model.model,
                model.revision,
                model.hf_text_config.to_dict(),
                model.quantization,
                str(config.cache_config.cache_dtype),
            ),
        )
        tp, pp = get_tp_group(), get_pp_group()
        topology = Topology(
            tp_size=tp.world_size, tp_rank=tp.rank_in_group, pp_size=pp.world_size, pp_rank=pp.rank_in_group
        )
        if self._kv_transfer_config.is_kv_producer:

            def agree(told: tuple[str, str]) -> tuple[str, str]:
                first: tuple[str, str] = pp.broadcast_object(tp.broadcast_object(told, src=0), src=0)
                return first

            index = parallel.data_parallel_index
            self._rank = start_prefill(settings, cache.pools, topology, agree, index)
        else:
            self._rank = start_decode(settings, cache.pools, topology)
        self._worker = Worker(self._rank.manager, cache.pages, settings.lease)

    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        rank = self._rank
        return BootstrapAddress(rank.bootstrap) if rank is not None and rank.serves else None

    @contained(lambda: None)
    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        if self._worker is not None and isinstance(self._connector_metadata, StepWork):
            self._worker.begin(self._connector_metadata.work)

    @contained(KVConnectorTransferResults)
    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        if self._worker is None:
            return KVConnectorTransferResults()
        step = self._connector_metadata
        ended = self._worker.ended(idle=isinstance(step, StepWork) and step.work.idle)
        return KVConnectorTransferResults(set(), ended.received, ended.failed)

    @contained(lambda: None)
    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        report = self._worker.report() if self._worker is not None else None
        return StepReport(report) if report is not None else None

    @contained(lambda: None)
    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        data = self._worker.transfers.taken() if self._worker is not None else None
        return PdcoreStats(data=data) if data is not None else None

    @contained(lambda: None)
    def shutdown(self) -> None:
        rank, self._rank, self._worker = self._rank, None, None
        if rank is not None:
            rank.close()

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded by layer."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing is saved by layer."""

    def wait_for_save(self) -> None:
        """Blocks are read where they lie, and kept until that has ended."""

    # --- in the front end ------------------------------------------------------------------------

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        return PdcoreStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics | None:
        return PdcorePromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)


def join_log() -> None:
    """Have pdcore's log lines come out as vLLM's do, unless somebody has seen to them: vLLM configures only
    its own logger."""
    ours, theirs = logging.getLogger("pdcore"), logging.getLogger("vllm")
    if not ours.handlers and theirs.handlers:
        ours.handlers = list(theirs.handlers)
        ours.propagate = False
        if ours.level == logging.NOTSET:
            ours.setLevel(theirs.getEffectiveLevel())
