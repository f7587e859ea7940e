"""Memory to copy from and to: filled from a seed, with guard bytes on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pdcore.regions import Region, WriteBatch

__all__ = ["FAR_GUARD", "NEAR_GUARD", "ByteArray", "GuardedMemory", "digest", "overlay", "pattern"]

ByteArray = npt.NDArray[np.uint8]

GUARD = 4096
"""Guard bytes before and after a region."""

NEAR_GUARD, FAR_GUARD = 0x5A, 0xA5
"""What the guards are made of: not the same on both sides, or copying one to the other would go unseen."""


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
    """``length`` bytes for one region, between two guards."""

    def __init__(self, name: str, length: int, guard: int) -> None:
        self._guard = guard
        self._all = np.full(length + 2 * GUARD, guard, np.uint8)
        self.bytes: ByteArray = self._all[GUARD : GUARD + length]
        self.region = Region.of(name, self.bytes)

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
        changed = np.flatnonzero(self._all != self._guard)
        outside = changed[(changed < GUARD) | (changed >= GUARD + len(self.bytes))]
        return [int(at) - GUARD for at in outside[:8]]
