"""What a demo run did, as data and as text."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import numpy as np

from pdcore.demo.planning.groups import Groups
from pdcore.model import Role

__all__ = ["DemoReport", "RequestFailure", "RequestReport"]


@attrs.frozen
class RequestReport:
    """One request that all ranks of both sides ended as SUCCESS.

    ``pages`` have come from prefill, ``held`` ones decode had before. ``nbytes`` and ``writes`` count over
    all ranks, replicated heads and latents once for each. ``latency`` is in seconds, from prefill's first
    send to the last SUCCESS of decode; ``moving`` are monotonic seconds, from the first byte that could
    move to the last SUCCESS of prefill. ``mismatch`` is empty if every byte at the far side is as the seed
    says, and prefill sent each once.
    """

    room: int
    tokens: int
    pages: int
    held: int
    nbytes: int
    writes: int
    aux_rows: int
    latency: float
    moving: tuple[float, float]
    digest: str
    expected_digest: str
    mismatch: str = ""


@attrs.frozen
class RequestFailure:
    """A request that ended as FAILED on ``side``, or that was never started."""

    room: int
    side: str
    code: str
    error: str


@attrs.frozen
class DemoReport:
    """The outcome of a run. ``wall`` is in seconds, from the first request to the last answer.

    ``peak_rss`` are bytes of each process that ended in order: the router, prefill, decode. ``messages``
    went over the control channel, both ways, heartbeats included.
    """

    backend: str
    transport: str
    model: str
    groups: Groups
    asked: int
    wall: float
    requests: tuple[RequestReport, ...]
    failures: tuple[RequestFailure, ...]
    peak_rss: tuple[int, ...] = ()
    messages: int = 0

    @property
    def good(self) -> bool:
        """Whether every request arrived and every byte of it is right."""
        return len(self.requests) == self.asked and not self.failures and not self.mismatches

    @property
    def mismatches(self) -> tuple[RequestReport, ...]:
        """The requests that arrived with wrong bytes."""
        return tuple(r for r in self.requests if r.mismatch)

    @property
    def nbytes(self) -> int:
        """Payload bytes of all requests that arrived."""
        return sum(r.nbytes for r in self.requests)

    @property
    def writes(self) -> int:
        """Blocks that the engines were asked to write for them."""
        return sum(r.writes for r in self.requests)

    @property
    def processes(self) -> int:
        """Processes of the run: a rank each, and the router."""
        return 1 + sum(len(self.groups.ranks(role)) for role in Role)

    @property
    def bytes_per_second(self) -> float:
        """Payload bytes over the wall time, in which the pages were also filled and compared."""
        return self.nbytes / self.wall if self.wall else 0.0

    @property
    def transfer_seconds(self) -> float:
        """Seconds in which at least one request was on its way."""
        total, until = 0.0, 0.0
        for begin, end in sorted(r.moving for r in self.requests):
            total += max(0.0, end - max(begin, until))
            until = max(until, end)
        return total

    @property
    def transfer_rate(self) -> float:
        """Payload bytes per second over :attr:`transfer_seconds`."""
        return self.nbytes / self.transfer_seconds if self.requests else 0.0

    def latency(self, percentile: float) -> float:
        """Return a percentile (0 to 100) of the latencies, in seconds."""
        return float(np.percentile([r.latency for r in self.requests], percentile)) if self.requests else 0.0

    def as_data(self) -> dict[str, object]:
        """Return the report for ``--json``: sizes in bytes, times in seconds."""
        return attrs.asdict(self, filter=lambda field, _: field.name != "groups") | {
            **self.groups.as_data(),
            "processes": self.processes,
            "writes": self.writes,
            "good": self.good,
            "bytes": self.nbytes,
            "bytes_per_second": self.bytes_per_second,
            "transfer_seconds": self.transfer_seconds,
            "latency_p50": self.latency(50),
            "latency_p99": self.latency(99),
            "verified": {
                "requests": len(self.requests) - len(self.mismatches),
                "pages": self._verified("pages"),
                "bytes": self._verified("nbytes"),
                "aux_rows": self._verified("aux_rows"),
                "held_pages": self._verified("held"),
            },
        }

    def lines(self) -> list[str]:
        """Return the report as text."""
        held = f", {n:,} pages that decode held" if (n := self._verified("held")) else ""
        out = [
            f"backend    {self.backend}, transport {self.transport}, model {self.model}",
            f"ranks      {self.groups}; {self.processes} processes, {self.messages:,} control messages",
            f"requests   {len(self.requests)} of {self.asked} arrived",
            f"bytes      {self.nbytes:,} ({self.nbytes / 1e9:.2f} GB) in {self.writes:,} writes "
            f"and {self.wall:.2f} s",
            f"rate       {self.bytes_per_second / 1e9:.2f} GB/s with filling and comparing, "
            f"{self.transfer_rate / 1e9:.2f} GB/s while requests were on their way",
            f"latency    p50 {self.latency(50) * 1e3:.2f} ms, p99 {self.latency(99) * 1e3:.2f} ms "
            "(first send to received)",
            f"verified   {self._verified('pages'):,} pages, {self._verified('nbytes'):,} bytes, "
            f"{self._verified('aux_rows'):,} aux rows{held}, by token, layer and head, and against a digest "
            "computed from the seed",
        ]
        if self.peak_rss:
            out.append(f"memory     {sum(self.peak_rss) / 2**30:.2f} GiB at most, all processes together")
        out += _some(f"MISMATCH   room {r.room}: {r.mismatch}" for r in self.mismatches)
        out += _some(self._failed())
        return out

    def _failed(self) -> list[str]:
        """Return a line for each different failure."""
        rooms: dict[tuple[str, str], list[int]] = {}
        for f in self.failures:
            rooms.setdefault((f.side, f.error), []).append(f.room)
        return [
            f"FAILED     room {first}{f' and {len(more)} more' if more else ''} on {side}: {error}"
            for (side, error), (first, *more) in rooms.items()
        ]

    def _verified(self, what: str) -> int:
        return sum(getattr(r, what) for r in self.requests if not r.mismatch)


MOST_LINES = 10


def _some(lines: Iterable[str]) -> list[str]:
    shown = list(lines)
    more = len(shown) - MOST_LINES
    return shown[:MOST_LINES] + ([f"           ... and {more} more, see --json"] if more > 0 else [])
