"""Memory to copy from and to: filled from a seed, with guard bytes on both sides, and watched."""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pdcore.contract.regions import Region, WriteBatch
from pdcore.model import Deadline

__all__ = [
    "FAR_GUARD",
    "GUARD",
    "NEAR_GUARD",
    "ByteArray",
    "GuardedMemory",
    "MemoryWatch",
    "SharedMemory",
    "digest",
    "overlay",
    "pattern",
]

ByteArray = npt.NDArray[np.uint8]

GUARD = 4096
"""Guard bytes before and after a region."""

NEAR_GUARD, FAR_GUARD = 0x5A, 0xA5
"""What the guards are made of: not the same on both sides, or copying one to the other would go unseen."""

MARK, STRIDE = 0x3C, 64
"""What memory is marked with that must not change any more, and at how many bytes' distance."""

LOOK = 0.01
"""Seconds between two looks at memory that is watched."""


def pattern(seed: int, length: int) -> ByteArray:
    """Return the bytes that a seed stands for: the same in every process."""
    data: bytes = np.random.default_rng(seed).bytes(length)
    return np.frombuffer(bytearray(data), np.uint8)


def digest(data: ByteArray) -> str:
    """Return the BLAKE2b digest of bytes, in hex."""
    return hashlib.blake2b(data.data, digest_size=16).hexdigest()


def overlay(targets: Sequence[ByteArray], sources: Sequence[ByteArray], batch: WriteBatch) -> None:
    """Make the copies of a batch by hand, entry by entry: what a correct engine leaves at the far side."""
    for pair, (first, last) in enumerate(zip(batch.starts[:-1], batch.starts[1:], strict=True)):
        source, target = sources[batch.local_regions[pair]], targets[batch.remote_regions[pair]]
        entries = (batch.local_offsets, batch.remote_offsets, batch.lengths)
        for here, there, size in zip(*(column[first:last].tolist() for column in entries), strict=True):
            target[there : there + size] = source[here : here + size]


class GuardedMemory:
    """``length`` bytes for one region, between two guards; ``memory`` is where, or None for new memory."""

    def __init__(self, name: str, length: int, guard: int, memory: ByteArray | None = None) -> None:
        self._guard = guard
        self._all = np.empty(length + 2 * GUARD, np.uint8) if memory is None else memory
        self.bytes: ByteArray = self._all[GUARD : GUARD + length]
        self.region = Region.of(name, self.bytes)
        self.mend()

    def mend(self) -> None:
        """Make the guards whole."""
        end = GUARD + len(self.bytes)
        self._all[:GUARD] = self._guard
        self._all[end:] = self._guard

    def fill(self, seed: int) -> None:
        """Set the bytes to a seed's pattern."""
        self.bytes[:] = pattern(seed, len(self.bytes))

    def damaged(self) -> list[int]:
        """Return the offsets, relative to the region, at which a guard byte was overwritten."""
        end = GUARD + len(self.bytes)
        before = np.flatnonzero(self._all[:GUARD] != self._guard) - GUARD
        after = np.flatnonzero(self._all[end:] != self._guard) + len(self.bytes)
        return [*before.tolist(), *after.tolist()][:8]


class SharedMemory:
    """Memory that another process of this host can look at, even while this one is stopped or dead."""

    def __init__(self, fd: int, length: int) -> None:
        self.fd = fd
        self.bytes: ByteArray = np.frombuffer(mmap.mmap(fd, length), np.uint8)

    @classmethod
    def make(cls, name: str, length: int) -> SharedMemory:
        """Make new memory."""
        fd = os.memfd_create(name)
        os.ftruncate(fd, length)
        return cls(fd, length)

    @classmethod
    def of(cls, pid: int, fd: int, length: int) -> SharedMemory:
        """Look at the memory that a process has made."""
        opened = os.open(f"/proc/{pid}/fd/{fd}", os.O_RDWR)
        try:
            return cls(opened, length)
        finally:
            os.close(opened)  # the mapping stays


class MemoryWatch:
    """Memory that must not change from now on. Marked at once, for the same bytes twice cannot be seen."""

    def __init__(self, memory: Sequence[ByteArray]) -> None:
        self._marks = [bytes_[::STRIDE] for bytes_ in memory]
        for marks in self._marks:
            marks[:] = MARK

    def changed(self) -> int:
        """Return how many marks were overwritten."""
        return sum(int(np.count_nonzero(marks != MARK)) for marks in self._marks)

    def await_change(self, deadline: Deadline) -> int:
        """Return how many marks were overwritten, as soon as one is; 0 once the deadline has passed."""
        again = threading.Event()  # never set: what must not come cannot wake anyone
        while not (changed := self.changed()) and not deadline.expired:
            again.wait(LOOK)
        return changed
