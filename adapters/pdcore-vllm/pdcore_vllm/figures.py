"""What :meth:`~pdcore_vllm.worker.Worker.figures` tells, in vLLM's log and at its ``/metrics``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import prometheus_client
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from pdcore.rooms.containment import contained

if TYPE_CHECKING:
    from vllm.config.vllm import VllmConfig

__all__ = ["PdcoreMetrics", "PdcoreStats"]

Types = dict[type[Any], type[Any]]
"""Prometheus' kinds of metrics -> what vLLM counts with."""


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

    def __init__(self, config: VllmConfig, types: Types, labels: list[str], engines: dict[int, Any]) -> None:
        super().__init__(config, types, labels, engines)
        counter, succeeded = types[prometheus_client.Counter], "Of the transfers that succeeded."
        self._rooms = counter("vllm:pdcore_rooms", "Rooms that ended, and how.", [*labels, "outcome"])
        self._seconds = counter("vllm:pdcore_transfer_seconds", succeeded, labels)
        self._bytes = counter("vllm:pdcore_transfer_bytes", succeeded, labels)

    @contained(lambda: None)
    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        engine, outcomes = self.per_engine_labelvalues[engine_idx], dict(transfer_stats_data)
        self._seconds.labels(*engine).inc(outcomes.pop("microseconds", 0) / 1e6)
        self._bytes.labels(*engine).inc(outcomes.pop("bytes", 0))
        for outcome, count in outcomes.items():
            self._rooms.labels(*engine, outcome).inc(count)
