"""The memory that every engine keeps readable for its peers: its nonce, its gate, and what it has under way.

A peer reads it with the same system call that moves KV cache, so that nothing else is needed between
two processes. What is read may be torn: the layout is such that a torn read never shows more than there is.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BUSY", "CELL", "NONCE", "PAGE_BYTES", "SLOTS", "UNDER_WAY", "CellArray", "Page"]

SLOTS = 512
"""How many writers an engine can admit at once, and how many peers it can be connected to."""

NONCE = 16
"""Bytes of a nonce or key: random, so that equal bytes mean the same engine."""

CELL = 32
"""Bytes of one cell of the gate, or of what is under way."""

BUSY = NONCE
"""Where the busy byte is in a cell of what is under way, after the nonce of the peer."""

UNDER_WAY = CELL * (1 + SLOTS)
"""Where the cells of what is under way start; the gate's come before them, and the nonce before those."""

PAGE_BYTES = CELL * (1 + 2 * SLOTS)

CellArray = npt.NDArray[np.uint8]
"""Cells of the page, shape (SLOTS, CELL)."""


class Page:
    """The page of one engine: ``nonce`` in the first cell, then the gate, then what is under way."""

    def __init__(self) -> None:
        self.nonce = secrets.token_bytes(NONCE)
        self._cells: npt.NDArray[Any] = np.zeros((1 + 2 * SLOTS, CELL), np.uint8)
        self._cells[0, :NONCE] = np.frombuffer(self.nonce, np.uint8)
        self.gate: CellArray = self._cells[1 : 1 + SLOTS]
        self.under_way: CellArray = self._cells[1 + SLOTS :]
        self.address: int = self._cells.ctypes.data

    def retire(self) -> None:
        """Take the nonce off the page: whoever looks now sees that this engine is gone."""
        self._cells[0] = 0
