"""Page and slot numbers of one worker: handed out scattered, taken back when no byte can land there."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from pdcore.model import Deadline

__all__ = ["PageAllocator"]


class PageAllocator:
    """Hands out the numbers ``0..count-1`` in a seeded random order, the last returned ones first.

    Reusing the last returned pages first is what a server does (they are warm), and it is the hardest
    case for the transfer: a late byte of the old request would hit the new one. Thread-safe.
    """

    def __init__(self, count: int, seed: int) -> None:
        order = np.random.default_rng(seed).permutation(count)
        self._free: npt.NDArray[np.int64] = order.astype(np.int64)
        self._top = count
        self._changed = threading.Condition()

    @property
    def free(self) -> int:
        """How many numbers can be taken now."""
        return self._top

    def take(self, count: int, deadline: Deadline) -> npt.NDArray[np.int64] | None:
        """Take ``count`` numbers, int64, waiting for others to be returned; None once the deadline passed."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._top >= count, deadline.remaining()):
                return None
            self._top -= count
            taken: npt.NDArray[np.int64] = self._free[self._top : self._top + count].copy()
            return taken

    def give_back(self, numbers: npt.NDArray[np.int64]) -> None:
        """Return numbers that ``take`` handed out."""
        with self._changed:
            self._free[self._top : self._top + len(numbers)] = numbers
            self._top += len(numbers)
            self._changed.notify_all()
