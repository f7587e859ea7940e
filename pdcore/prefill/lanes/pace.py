"""How much goes to a peer between two looks at who else waits: what the engine moves in some milliseconds."""

from __future__ import annotations

import math

import attrs

__all__ = ["ENTRY_BYTES", "Pace"]

FIRST_ENTRIES, FIRST_BYTES = 1024, 64 * 2**20
"""What is tried first, or less where the engine says that entries are dear; then what it takes tells."""
TARGET = 0.03
"""Seconds that one piece shall take, within a factor of two: long enough that cutting costs little (7 % of a
large copy by ``local`` at 0.01), short enough to wait for."""
LOWEST, HIGHEST = -4, 8
ENTRY_BYTES = 8 * 2**20
"""Longer entries are cut: an engine cannot be asked to pause within one."""


@attrs.define
class Pace:
    """The size of the pieces that a large transfer goes out in; belongs to one lane.

    Pieces are doubled or halved, from 64 entries and 4 MiB to 262,144 entries and 16 GiB. ``entry_cost`` is
    the engine's, in seconds.
    """

    entry_cost: float = 0.0
    _doublings: int = attrs.field(init=False)
    _usual: float = attrs.field(default=TARGET, init=False)

    @_doublings.default
    def _first(self) -> int:
        affordable = TARGET / self.entry_cost if self.entry_cost > 0 else FIRST_ENTRIES
        return max(LOWEST, min(0, math.ceil(math.log2(affordable / FIRST_ENTRIES))))

    @property
    def entries(self) -> int:
        """Entries of the next piece, at most."""
        return int(FIRST_ENTRIES * 2.0**self._doublings)

    @property
    def nbytes(self) -> int:
        """Bytes of the next piece, at most (but one entry)."""
        return int(FIRST_BYTES * 2.0**self._doublings)

    def took(self, seconds: float) -> None:
        """Note how long a piece of that size took while nothing else was under way."""
        # Two pieces are under way at once, and often land together: one alone tells little.
        self._usual = (self._usual + seconds) / 2
        if self._usual > 2 * TARGET and self._doublings > LOWEST:
            self._doublings -= 1
            self._usual /= 2
        elif self._usual < TARGET / 2 and self._doublings < HIGHEST:
            self._doublings += 1
            self._usual *= 2
