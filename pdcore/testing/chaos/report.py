"""What a chaos run found."""

from __future__ import annotations

from collections import Counter

import attrs

__all__ = ["ChaosReport"]


@attrs.define
class ChaosReport:
    """Counts of a run; the lists must be empty in the end.

    A request succeeds when decode has compared every byte. ``reasons`` counts the others, by side and code.
    """

    backend: str
    transport: str = ""
    seconds: float = 0.0
    rooms: int = 0
    verified: int = 0
    reasons: Counter[str] = attrs.field(factory=Counter)
    disturbances: Counter[str] = attrs.field(factory=Counter)
    wrong_bytes: list[str] = attrs.field(factory=list)
    hung_rooms: list[str] = attrs.field(factory=list)
    leaked_pages: list[str] = attrs.field(factory=list)
    leaked_threads_and_sockets: list[str] = attrs.field(factory=list)
    died: list[str] = attrs.field(factory=list)

    @property
    def good(self) -> bool:
        """Whether requests arrived and nothing happened that must not."""
        return self.verified > 0 and not any(found for _, found in self._zeros())

    def lines(self) -> list[str]:
        """Return the report as text."""
        return [
            f"backend       {self.backend}, transport {self.transport}, {self.seconds:.0f} s",
            f"disturbances  {_counts(self.disturbances)}",
            f"rooms         {self.rooms}",
            f"successes     {self.verified}, every byte of them compared at the far side",
            f"failures      {_counts(self.reasons)}",
            *(f"{title:<28}  {len(found)}" for title, found in self._zeros()),
            *(f"  {line}" for _, found in self._zeros() for line in found[:10]),
        ]

    def _zeros(self) -> tuple[tuple[str, list[str]], ...]:
        return (
            ("wrong bytes", self.wrong_bytes),
            ("hung rooms", self.hung_rooms),
            ("leaked pages", self.leaked_pages),
            ("leaked threads or sockets", self.leaked_threads_and_sockets),
            ("workers that died by themselves", self.died),
        )


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counter.most_common() if count) or "none"
