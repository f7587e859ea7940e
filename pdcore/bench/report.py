"""The figures of a benchmark run, as data and as a table, with what they must reach."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from pdcore.bench.cases import Large, Planning, Tiny
from pdcore.bench.stuck_peer import StuckPeer

__all__ = ["BenchReport", "Goal"]


CHEAP = 1e-4
"""Seconds of a raw tiny write, up to which the figures of tiny requests are pdcore's and not the engine's."""


@attrs.frozen
class Goal:
    """A figure that a release must reach; ``least`` False means "at most"."""

    name: str
    value: float
    bound: float
    least: bool

    @property
    def reached(self) -> bool:
        """Whether the figure is on the right side of its bound."""
        return self.value >= self.bound if self.least else self.value < self.bound

    def __str__(self) -> str:
        verdict = "reached" if self.reached else "MISSED"
        relation = "at least" if self.least else "below"
        return f"{verdict:<8} {self.name}: {self.value:.4g}, to be {relation} {self.bound:g}"


@attrs.frozen
class BenchReport:
    """Everything that was measured; times in seconds, sizes in bytes."""

    backend: str
    large: tuple[Large, ...]
    tiny: tuple[Tiny, Tiny]
    beside: StuckPeer
    planning: Planning

    @property
    def targets(self) -> tuple[Goal, ...]:
        """What must be reached: ratios always, absolute figures where the engine itself costs little."""
        contiguous = [large.ratio for large in self.large if large.name.startswith("contiguous")]
        sequential, flying = self.tiny
        ratios = (
            Goal("large contiguous, rate over raw", min(contiguous), 0.9, True),
            Goal("planning, times faster than a loop", self.planning.ratio, 15, True),
            Goal("requests beside a stopped peer, rate over alone", self.beside.ratio, 0.8, True),
        )
        if sequential.raw > CHEAP:
            return ratios
        return (
            *ratios,
            Goal("tiny requests per second, 64 in flight", flying.per_second, 4000, True),
            Goal("tiny requests one by one, p50 in ms", sequential.p50 * 1e3, 0.6, False),
        )

    def as_data(self) -> dict[str, object]:
        """Return the report for ``--json``."""
        targets = [attrs.asdict(t) | {"reached": t.reached} for t in self.targets]
        return attrs.asdict(self) | {"targets": targets}

    def lines(self) -> list[str]:
        """Return the report as text."""
        large = [
            (
                c.name,
                f"{c.nbytes / 2**20:.0f}",
                f"{c.entries:,}",
                f"{c.nbytes / c.raw / 1e9:.2f}",
                f"{c.nbytes / c.pdcore / 1e9:.2f}",
                f"{c.ratio:.3f}",
            )
            for c in self.large
        ]
        tiny = [
            (
                str(t.in_flight),
                f"{t.per_second:,.0f}",
                f"{t.p50 * 1e3:.3f}",
                f"{t.p99 * 1e3:.3f}",
                f"{t.cpu_prefill * 1e6:.0f}",
                f"{t.cpu_decode * 1e6:.0f}",
                f"{t.raw * 1e6:.0f}",
            )
            for t in self.tiny
        ]
        plan = self.planning
        return [
            f"backend {self.backend}; medians, raw and pdcore in turns",
            "",
            *_table(("large", "MiB", "entries", "raw GB/s", "pdcore GB/s", "ratio"), large),
            "",
            *_table(
                ("tiny, in flight", "requests/s", "p50 ms", "p99 ms", "prefill us", "decode us", "raw us"),
                tiny,
            ),
            "(prefill, decode: CPU time per request; raw: the engine's write alone)",
            f"{self.tiny[1].in_flight} in flight beside a stopped peer: {self.beside}",
            "",
            f"planning {plan.entries:,} entries: {plan.numpy * 1e3:.2f} ms, by a loop "
            f"{plan.loop * 1e3:.1f} ms ({plan.ratio:.1f} times); validation {plan.validation * 1e3:.2f} ms",
            "",
            *(str(target) for target in self.targets),
        ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
