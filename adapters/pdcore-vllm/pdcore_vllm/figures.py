"""What :meth:`~pdcore_vllm.worker.Worker.figures` tells, in vLLM's log and at its ``/metrics``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import prometheus_client
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from pdcore.containment import contained

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

__all__ = ["PdcoreMetrics", "PdcoreStats"]


@dataclass
class PdcoreStats(KVConnectorStats):
    """Figures, added up over workers and an interval."""

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        return PdcoreStats(dict(Counter(self.data) + Counter(other.data)))

    def reduce(self) -> dict[str, int | float]:
        return self.data

    def is_empty(self) -> bool:
        return not self.data


class PdcoreMetrics(KVConnectorPromMetrics):
    """``vllm:pdcore_rooms_total`` by ``outcome``, ``vllm:pdcore_transfer_seconds_total`` and
    ``vllm:pdcore_transfer_bytes_total``; each rank of an engine counts."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        metric_types: dict[type[Any], type[Any]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        counter = metric_types[prometheus_client.Counter]
        outcome = "Rooms that ended: success, or the code of pdcore's failure."
        self._rooms = counter("vllm:pdcore_rooms", outcome, [*labelnames, "outcome"])
        seconds = "Seconds of the transfers that succeeded."
        self._seconds = counter("vllm:pdcore_transfer_seconds", seconds, labelnames)
        self._bytes = counter(
            "vllm:pdcore_transfer_bytes", "Bytes of the transfers that succeeded.", labelnames
        )

    @contained(lambda: None)
    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        engine, outcomes = self.per_engine_labelvalues[engine_idx], dict(transfer_stats_data)
        self._seconds.labels(*engine).inc(outcomes.pop("microseconds", 0) / 1e6)
        self._bytes.labels(*engine).inc(outcomes.pop("bytes", 0))
        for outcome, count in outcomes.items():
            self._rooms.labels(*engine, outcome).inc(count)
