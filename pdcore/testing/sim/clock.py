"""Time that passes only when something happens."""

from __future__ import annotations

import heapq
from collections.abc import Callable

__all__ = ["Clock"]


class Clock:
    """Does what is due, in order; what is due at one moment in the order in which it was planned."""

    __slots__ = ("_later", "_planned", "now")

    def __init__(self) -> None:
        self.now = 1.0
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something so many seconds from now."""
        self._planned += 1
        heapq.heappush(self._later, (self.now + seconds, self._planned, what))

    def step(self) -> bool:
        """Do the next thing; False if there is none."""
        if not self._later:
            return False
        self.now, _, what = heapq.heappop(self._later)
        what()
        return True

    @property
    def steps(self) -> int:
        """How many things were done."""
        return self._planned - len(self._later)
