"""pdcore's figures in vLLM's log and at its ``/metrics``: the classes that vLLM asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

from pdcore_vllm.guard import contained
from pdcore_vllm.metrics import BYTES, OUTCOMES, SECONDS, added, summary

__all__ = ["PdcorePromMetrics", "PdcoreStats"]

TIMES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass
class PdcoreStats(KVConnectorStats):
    """Transfers of an interval, in the form of :mod:`pdcore_vllm.metrics`."""

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        self.data = added(self.data, other.data)
        return self

    def reduce(self) -> dict[str, int | float]:
        return summary(self.data)

    def is_empty(self) -> bool:
        return not self.data.get(OUTCOMES)


class PdcorePromMetrics(KVConnectorPromMetrics):
    """``vllm:pdcore_transfer_seconds``, ``vllm:pdcore_bytes_total``, and ``vllm:pdcore_transfers_total`` by
    ``outcome``; of all ranks."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._labels = per_engine_labelvalues
        self._seconds = self._histogram_cls(
            name="vllm:pdcore_transfer_seconds",
            documentation="Seconds from the first byte that can move to the end, of requests that succeeded.",
            buckets=TIMES,
            labelnames=labelnames,
        )
        self._bytes = self._counter_cls(
            name="vllm:pdcore_bytes",
            documentation="Bytes of KV cache of requests that succeeded.",
            labelnames=labelnames,
        )
        self._ended = self._counter_cls(
            name="vllm:pdcore_transfers",
            documentation="Requests whose transfer ended, by outcome: success, or pdcore's failure code.",
            labelnames=[*labelnames, "outcome"],
        )

    @contained(lambda: None)
    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        labels = self._labels[engine_idx]
        for seconds in transfer_stats_data.get(SECONDS, ()):
            self._seconds.labels(*labels).observe(seconds)
        self._bytes.labels(*labels).inc(sum(transfer_stats_data.get(BYTES, ())))
        for outcome, count in transfer_stats_data.get(OUTCOMES, {}).items():
            self._ended.labels(*labels, outcome).inc(count)
