"""What may be about a life of a room that has ended, or about its next one, is settled a moment later.

An id is given out again only once both sides have cleared it: a life that opens meanwhile is what was meant.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from pdcore.prefill.lives import DOUBT, Life, Word

__all__ = ["Doubts"]


class Doubts:
    """Actions that are due ``DOUBT`` after they were put off, run by one thread, put off by any."""

    def __init__(self) -> None:
        self._later: deque[tuple[float, Callable[[], None]]] = deque()

    def put_off(self, action: Callable[[], None]) -> None:
        """Do this a moment later."""
        self._later.append((time.monotonic() + DOUBT, action))

    def about(self, word: Word, life: Life, arrived: float) -> bool:
        """Whether a word that came at ``arrived`` is to be kept back from a life that awaits it."""
        return time.monotonic() - arrived < DOUBT and life.in_doubt(word)

    def settle(self) -> None:
        """Do what is due."""
        while self._later and self._later[0][0] <= time.monotonic():
            self._later.popleft()[1]()
