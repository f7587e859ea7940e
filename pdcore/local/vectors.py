"""A batch as the kernel takes it: scatter lists in numpy, cut into bounded chunks."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pdcore.contract.regions import OffsetArray
from pdcore.local.kernel import IOV_MAX, write_memory

__all__ = ["CHUNK_BYTES", "Vectors"]

CHUNK_BYTES = 8 * 2**20
"""A chunk ends after the entry that reaches this; no entry is longer. Bounds how long a revoke waits."""

ENTRY = 16  # bytes of one struct iovec


class Vectors:
    """Source and target entries (``struct iovec`` arrays), and the chunks they are copied in."""

    def __init__(self, source: OffsetArray, target: OffsetArray, lengths: OffsetArray) -> None:
        if int(lengths.max()) > CHUNK_BYTES:
            source, target, lengths = _cut_long_entries(source, target, lengths)
        self._local = _entries(source, lengths)
        self._remote = _entries(target, lengths)
        self._ends = lengths.cumsum()
        self._bounds = _chunk_bounds(self._ends)
        self._at = self._moved = 0

    def copy(self, pid: int, permit: Callable[[], None]) -> None:
        """Copy all entries to process ``pid``, asking ``permit`` before each chunk.

        Raises:
            OSError: as the kernel says; :meth:`stopped_at` then tells the entry.
            KVTransferError: from ``permit``.
        """
        local, remote = self._local.ctypes.data, self._remote.ctypes.data
        self._moved = 0
        for first, last in pairwise(self._bounds):
            self._at = first
            while self._at < last:
                permit()
                skip = ENTRY * self._at
                self._advance(last, write_memory(pid, local + skip, remote + skip, last - self._at))

    def copy_all(self, pid: int) -> None:
        """Copy all entries with nothing around the system calls; can be called again.

        Raises:
            OSError: as the kernel says, or when a call moved fewer bytes than it was given.
        """
        local, remote = self._local.ctypes.data, self._remote.ctypes.data
        moved = 0
        for first, last in pairwise(self._bounds):
            moved += write_memory(pid, local + ENTRY * first, remote + ENTRY * first, last - first)
        if moved != int(self._ends[-1]):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    def stopped_at(self) -> tuple[int, int, int]:
        """Return the source address, target address and length of the entry that was due next."""
        source, length = self._local[self._at].tolist()
        return source, int(self._remote[self._at, 0]), length

    def _advance(self, last: int, moved: int) -> None:
        if moved == 0:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        self._moved += moved
        if self._moved == self._ends[last - 1]:
            self._at = last
            return
        # The kernel may stop anywhere, also within an entry: go on from there.
        ends = self._local[self._at : last, 1].cumsum()
        whole = int(np.searchsorted(ends, np.uint64(moved), side="right"))
        part = np.uint64(moved) - (ends[whole - 1] if whole else np.uint64(0))
        self._at += whole
        for entries in (self._local, self._remote):
            entries[self._at, 0] += part
            entries[self._at, 1] -= part


def _entries(addresses: OffsetArray, lengths: OffsetArray) -> npt.NDArray[np.uint64]:
    entries = np.empty((len(lengths), 2), np.uint64)
    entries[:, 0] = addresses
    entries[:, 1] = lengths
    return entries


def _chunk_bounds(ends: OffsetArray) -> list[int]:
    """Return where chunks begin, and the end of the last, of entries that end at so many bytes."""
    count, total = len(ends), int(ends[-1])
    if total <= CHUNK_BYTES:
        return [*range(0, count, IOV_MAX), count]
    full = np.searchsorted(ends, np.arange(CHUNK_BYTES, total, CHUNK_BYTES, dtype=np.uint64)) + 1
    bounds = np.union1d(np.arange(0, count, IOV_MAX), full[full < count])
    return [*bounds.tolist(), count]


def _cut_long_entries(
    source: OffsetArray, target: OffsetArray, lengths: OffsetArray
) -> tuple[OffsetArray, OffsetArray, OffsetArray]:
    size = np.uint64(CHUNK_BYTES)
    pieces = ((lengths + size - np.uint64(1)) // size).astype(np.int64)
    entry = np.repeat(np.arange(len(lengths)), pieces)
    nth = np.arange(len(entry)) - np.repeat(pieces.cumsum() - pieces, pieces)
    skip = nth.astype(np.uint64) * size
    return source[entry] + skip, target[entry] + skip, np.minimum(lengths[entry] - skip, size)
