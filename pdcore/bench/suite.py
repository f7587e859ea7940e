"""All cases of the benchmark, in their order."""

from __future__ import annotations

from collections.abc import Callable

from pdcore.bench.cases import Effort, measure_large, measure_planning, measure_tiny
from pdcore.bench.report import BenchReport
from pdcore.demo.messages import WorkerSettings

__all__ = ["run_bench"]

PLANNING_ROUNDS = 15


def run_bench(settings: WorkerSettings, effort: Effort, tell: Callable[[str], None]) -> BenchReport:
    """Run every case; ``tell`` hears what is measured next.

    Raises:
        PDCoreError: a side could not start, or a request failed.
    """
    tell("planning")
    planning = measure_planning(PLANNING_ROUNDS)
    large = []
    for page_size in effort.page_sizes:
        tell(f"large transfers, page size {page_size}")
        large += measure_large(settings, page_size, effort)
    tell("tiny requests")
    sequential, flying, beside = measure_tiny(settings, effort)
    return BenchReport(settings.backend, tuple(large), (sequential, flying), beside, planning)
