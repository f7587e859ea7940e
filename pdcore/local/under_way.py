"""To which peers the writing side has copies under way, noted where those peers can read it."""

from __future__ import annotations

import threading

import numpy as np

from pdcore.errors import EngineError
from pdcore.local.page import BUSY, NONCE, SLOTS, CellArray
from pdcore.model import Deadline

__all__ = ["UnderWay"]


class UnderWay:
    """One row per connected peer, with a byte that is 1 while any batch for it is under way.

    The counters behind the bytes are private: a byte cannot be read torn, a wider number could.
    """

    def __init__(self, cells: CellArray) -> None:
        self._cells = cells
        self._quiet = threading.Condition()  # guards all below; never held across a system call
        self._counts: dict[int, int] = {}
        self._leaving: set[int] = set()
        self._open = True

    def add(self, target: bytes) -> int:
        """Return a new row for the engine whose nonce is ``target``.

        Raises:
            EngineError: there are as many rows as fit.
        """
        with self._quiet:
            row = next((r for r in range(SLOTS) if r not in self._counts), None)
            if row is None:
                raise EngineError(
                    "this engine is connected to as many peers as it can hold",
                    f"{len(self._counts)} peers",
                    "disconnect peers that are no longer served",
                )
            self._counts[row] = 0
            self._cells[row, :NONCE] = np.frombuffer(target, np.uint8)
            return row

    def remove(self, row: int) -> None:
        """Give a row back, once the batches under way have ended; idempotent."""
        with self._quiet:
            self._leaving.add(row)
            self._forget_if_quiet(row)

    def enter(self, row: int) -> bool:
        """Note that one more batch is under way; False if the row is gone or this engine is closing."""
        with self._quiet:
            if not self._open or row not in self._counts or row in self._leaving:
                return False
            self._counts[row] += 1
            self._cells[row, BUSY] = 1
            return True

    def leave(self, row: int) -> None:
        """Note that a batch ended: none of its bytes can move any more."""
        with self._quiet:
            self._counts[row] -= 1
            if not self._counts[row]:
                self._cells[row, BUSY] = 0
                self._forget_if_quiet(row)
                self._quiet.notify_all()

    @property
    def open(self) -> bool:
        """Whether batches may start or go on."""
        return self._open

    def close(self) -> None:
        """Let no batch start any more, and those under way end at their next chunk."""
        with self._quiet:
            self._open = False

    def wait_quiet(self, deadline: Deadline) -> bool:
        """Wait until no batch is under way; False when the deadline came first."""
        with self._quiet:
            return self._quiet.wait_for(lambda: not any(self._counts.values()), deadline.remaining())

    def _forget_if_quiet(self, row: int) -> None:
        if row in self._leaving and not self._counts.get(row):
            self._leaving.discard(row)
            if self._counts.pop(row, None) is not None:
                self._cells[row] = 0
