"""Figures of transfers that ended, as plain data that travels from the workers to vLLM's loggers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pdcore import RequestMetrics

__all__ = ["BYTES", "OUTCOMES", "SECONDS", "Transfers", "added", "summary"]

SECONDS, BYTES, OUTCOMES = "seconds", "bytes", "outcomes"
"""The data of an interval: seconds and bytes of the requests that succeeded (lists of numbers), and how many
ended how (``success``, or pdcore's failure code)."""


class Transfers:
    """What ended since the figures were taken last."""

    def __init__(self) -> None:
        self._data = added({}, {})

    def note(self, outcome: str, metric: RequestMetrics | None = None) -> None:
        """Count one request of this rank."""
        counts = Counter(self._data[OUTCOMES])
        counts[outcome] += 1
        self._data[OUTCOMES] = dict(counts)
        if metric is not None and outcome == "success":
            self._data[SECONDS].append(metric.transfer)
            self._data[BYTES].append(metric.nbytes)

    def taken(self) -> dict[str, Any] | None:
        """Return the data of the interval and begin another; None if nothing ended."""
        if not self._data[OUTCOMES]:
            return None
        data, self._data = self._data, added({}, {})
        return data


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of two intervals, or of two workers."""
    return {
        SECONDS: [*one.get(SECONDS, ()), *other.get(SECONDS, ())],
        BYTES: [*one.get(BYTES, ()), *other.get(BYTES, ())],
        OUTCOMES: dict(Counter(one.get(OUTCOMES, {})) + Counter(other.get(OUTCOMES, {}))),
    }


def summary(data: Mapping[str, Any]) -> dict[str, int | float]:
    """Return what a line of the log tells of an interval: the transfers of all ranks."""
    seconds, nbytes = data.get(SECONDS, ()), data.get(BYTES, ())
    failed = {f"Failed ({code})": n for code, n in data.get(OUTCOMES, {}).items() if code != "success"}
    if not seconds:
        return {"Transfers": 0, **failed}
    return {
        "Transfers": len(seconds),
        "Avg transfer (ms)": round(1e3 * sum(seconds) / len(seconds), 3),
        "Max transfer (ms)": round(1e3 * max(seconds), 3),
        "Avg MB per transfer": round(sum(nbytes) / len(nbytes) / 1e6, 3),
        **failed,
    }
