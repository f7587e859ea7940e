"""The pages of one side: handed out, watched while they are free, and filled from a number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pdcore.layout.aux_schema import AuxField, AuxSchema
from pdcore.layout.kv import KVLayout
from pdcore.memory.metadata_buffers import MetadataBuffers
from pdcore.memory.pools import Pools

__all__ = ["PAGES", "SLOTS", "WatchedMemory", "page_bytes"]

PAGES, SLOTS = 24, 8
LAYOUT = KVLayout.heads(layers=range(2), kv_heads=1, head_dim=8, page_size=2, num_pages=PAGES)
SCHEMA = AuxSchema((AuxField("serial", "int64"),))
FREE = 0
"""The serial of what a free page holds."""


def page_bytes(serial: int, buffer: int, index: int, length: int) -> npt.NDArray[np.uint8]:
    """Return what page ``index`` of request ``serial`` holds in a buffer."""
    return np.random.default_rng([serial, buffer, index]).integers(0, 256, length, np.uint8)


class WatchedMemory:
    """Pools, and their pages and slots: handed out, the last returned first, and watched while free.

    A page that is taken back gets new content at once: whoever still reads or writes it is seen.
    """

    def __init__(self, layout: KVLayout = LAYOUT, slots: int = SLOTS) -> None:
        self.aux = MetadataBuffers(SCHEMA, slots)
        self.pools = Pools.allocate(layout, aux=self.aux)
        self._free = list(range(layout.num_pages))
        self._slots = list(range(slots))
        self._stamp = 0
        self._expected = [array.copy() for array in self.pools.arrays]
        self._stamp_pages(self._free)

    @property
    def free(self) -> tuple[int, int]:
        """How many pages and slots are free."""
        return len(self._free), len(self._slots)

    def take(self, count: int) -> tuple[list[int], int] | None:
        """Take pages and a slot, or None if there are not enough."""
        if len(self._free) < count or not self._slots:
            return None
        taken = [self._free.pop() for _ in range(count)]
        return taken, self._slots.pop()

    def give_back(self, pages: Sequence[int], slot: int) -> None:
        """Take pages and a slot back."""
        self._stamp_pages(pages)
        self._free.extend(pages)
        self._slots.append(slot)

    def fill(self, serial: int, pages: Sequence[int], first: int = 0) -> None:
        """Write pages ``first, first + 1, ...`` of a request."""
        for buffer, array in enumerate(self.pools.arrays):
            for nth, page in enumerate(pages, first):
                array[page] = page_bytes(serial, buffer, nth, array.shape[1])

    def wrong_pages(self, serial: int, pages: Sequence[int]) -> list[int]:
        """Return the pages that don't hold what the request put there."""
        return [
            page
            for nth, page in enumerate(pages)
            if any(
                not np.array_equal(array[page], page_bytes(serial, buffer, nth, array.shape[1]))
                for buffer, array in enumerate(self.pools.arrays)
            )
        ]

    def touched(self) -> list[int]:
        """Return the free pages that somebody has written to."""
        changed = [
            (array[self._free] != expected[self._free]).any(axis=1)
            for array, expected in zip(self.pools.arrays, self._expected, strict=True)
        ]
        return [page for page, bad in zip(self._free, np.any(changed, axis=0), strict=True) if bad]

    def _stamp_pages(self, pages: Sequence[int]) -> None:
        self._stamp += 1
        for buffer, (array, expected) in enumerate(zip(self.pools.arrays, self._expected, strict=True)):
            for page in pages:
                expected[page] = array[page] = page_bytes(FREE, buffer, self._stamp, array.shape[1])
