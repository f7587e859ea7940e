"""Cutting and joining batches, so that they fit what an engine takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pdcore.regions import WriteBatch

__all__ = ["join", "slices", "split_entries"]

_ZERO = np.zeros(1, np.int64)


def join(batches: Sequence[WriteBatch]) -> WriteBatch:
    """Return one batch with the copies of all; empty ones vanish."""
    full = [b for b in batches if len(b)]
    if len(full) <= 1:
        return full[0] if full else WriteBatch.empty()
    counts = np.concatenate([b.starts[1:] - b.starts[:-1] for b in full])
    return WriteBatch(
        np.concatenate([b.local_regions for b in full]),
        np.concatenate([b.remote_regions for b in full]),
        np.concatenate((_ZERO, counts.cumsum())),
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


def slices(batch: WriteBatch, max_entries: int | None) -> Iterator[WriteBatch]:
    """Yield the batch in pieces of at most ``max_entries`` entries, in order."""
    n = len(batch)
    if max_entries is None or n <= max_entries:
        yield batch
        return
    for low in range(0, n, max_entries):
        high = min(n, low + max_entries)
        first = int(np.searchsorted(batch.starts, low, side="right")) - 1
        last = int(np.searchsorted(batch.starts, high, side="left"))
        yield WriteBatch(
            batch.local_regions[first:last],
            batch.remote_regions[first:last],
            np.clip(batch.starts[first : last + 1], low, high) - low,
            batch.local_offsets[low:high],
            batch.remote_offsets[low:high],
            batch.lengths[low:high],
        )
