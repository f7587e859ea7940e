"""Cutting and joining batches, so that they fit what an engine takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np

from pdcore.contract.regions import OffsetArray, WriteBatch

__all__ = ["Slicer", "join", "slices", "split_entries"]

_ZERO = np.zeros(1, np.int64)


def join(batches: Sequence[WriteBatch]) -> WriteBatch:
    """Return one batch with the copies of all; empty ones vanish."""
    full = [b for b in batches if len(b)]
    if len(full) <= 1:
        return full[0] if full else WriteBatch.empty()
    before = [0, *accumulate(map(len, full))]
    starts = [b.starts[:-1] + first for b, first in zip(full, before, strict=False)]
    return WriteBatch(
        np.concatenate([b.local_regions for b in full]),
        np.concatenate([b.remote_regions for b in full]),
        np.concatenate([*starts, before[-1:]]),
        np.concatenate([b.local_offsets for b in full]),
        np.concatenate([b.remote_offsets for b in full]),
        np.concatenate([b.lengths for b in full]),
    )


def split_entries(batch: WriteBatch, max_entry_bytes: int | None) -> WriteBatch:
    """Return the batch with every entry of more than ``max_entry_bytes`` bytes cut into several."""
    if max_entry_bytes is None or len(batch) == 0 or int(batch.lengths.max()) <= max_entry_bytes:
        return batch
    limit = np.uint64(max_entry_bytes)
    parts = ((batch.lengths + (limit - np.uint64(1))) // limit).astype(np.int64)
    ends = np.cumsum(parts)
    nth = (np.arange(int(ends[-1])) - np.repeat(ends - parts, parts)).astype(np.uint64)
    shift = nth * limit
    return WriteBatch(
        batch.local_regions,
        batch.remote_regions,
        np.concatenate((_ZERO, ends))[batch.starts],
        np.repeat(batch.local_offsets, parts) + shift,
        np.repeat(batch.remote_offsets, parts) + shift,
        np.minimum(np.repeat(batch.lengths, parts) - shift, limit),
    )


class Slicer:
    """Takes a batch of ``nbytes`` in pieces, in order. ``entries`` and ``nbytes`` are those that are left."""

    def __init__(self, batch: WriteBatch, nbytes: int | None = None) -> None:
        self._batch = batch
        self._low = 0
        self.entries = len(batch)
        self.nbytes = batch.nbytes if nbytes is None else nbytes

    @cached_property
    def _ends(self) -> OffsetArray:
        return self._batch.lengths.cumsum()

    def take(self, max_entries: int | None, max_bytes: int | None = None) -> WriteBatch:
        """Take at most so many entries and bytes, but at least one entry; empty when none is left."""
        batch, low, n = self._batch, self._low, len(self._batch)
        high = n if max_entries is None else min(n, low + max_entries)
        if max_bytes is not None and max_bytes < self.nbytes:
            before = int(self._ends[low - 1]) if low else 0
            within = int(np.searchsorted(self._ends, np.uint64(before + max_bytes), side="right"))
            high = min(high, max(low + 1, within))
        self._low, self.entries = high, n - high
        if high == n:
            self.nbytes = 0
        elif low < high:
            self.nbytes = int(self._ends[-1] - self._ends[high - 1])
        if low == 0 and high == n:
            return batch
        if low == high:
            return WriteBatch.empty()
        first = int(np.searchsorted(batch.starts, low, side="right")) - 1
        last = int(np.searchsorted(batch.starts, high, side="left"))
        return WriteBatch(
            batch.local_regions[first:last],
            batch.remote_regions[first:last],
            np.clip(batch.starts[first : last + 1], low, high) - low,
            batch.local_offsets[low:high],
            batch.remote_offsets[low:high],
            batch.lengths[low:high],
        )


def slices(batch: WriteBatch, max_entries: int | None) -> Iterator[WriteBatch]:
    """Yield the batch in pieces of at most ``max_entries`` entries, in order; an empty one as it is."""
    rest = Slicer(batch)
    yield rest.take(max_entries)
    while rest.entries:
        yield rest.take(max_entries)
