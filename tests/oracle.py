"""The slow and obvious reference: what every byte of a decode rank must be, in dense arrays.

A byte is an int64 here: the number of one logical byte of the request, or GARBAGE, or EMPTY, so that no
two can be mistaken for each other. Nothing in this file knows how pdcore plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from pdcore.contract.regions import WriteBatch
from pdcore.layout.kv import PageOrder

__all__ = [
    "EMPTY",
    "GARBAGE",
    "Bytes",
    "Copy",
    "Target",
    "copies",
    "copy_batch",
    "held_heads",
    "i64",
    "paged",
    "shard",
    "spread",
]

Bytes = npt.NDArray[np.int64]
"""Bytes by their logical number."""

EMPTY = -1
GARBAGE = -2

Copy = tuple[int, int, int, int, int]
"""Local region, remote region, local offset, remote offset, bytes."""


def i64(values: list[int]) -> Bytes:
    """Return indices as planners take them."""
    return np.array(values, np.int64)


def copies(batch: WriteBatch) -> list[Copy]:
    """Return the entries of a batch one by one, with a loop that is too plain to be wrong."""
    return [
        (
            int(batch.local_regions[p]),
            int(batch.remote_regions[p]),
            int(batch.local_offsets[e]),
            int(batch.remote_offsets[e]),
            int(batch.lengths[e]),
        )
        for p in range(len(batch.local_regions))
        for e in range(batch.starts[p], batch.starts[p + 1])
    ]


class Target:
    """The registered memory of a decode rank: regions by number, and how often each byte was written."""

    def __init__(self, regions: Sequence[Bytes]) -> None:
        self.regions = [np.full(region.size, EMPTY, np.int64) for region in regions]
        self.writes = [np.zeros(region.size, np.int64) for region in regions]
        self.expected = [region.reshape(-1) for region in regions]

    def check(self) -> None:
        """Assert that what must be there is there, was written once, and nothing else was touched."""
        for found, writes, expected in zip(self.regions, self.writes, self.expected, strict=True):
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(writes, (expected != EMPTY).astype(np.int64))


def copy_batch(batch: WriteBatch, source: Sequence[Bytes], target: Target) -> None:
    """Do what an engine would do, entry by entry, after the proof that an engine asks for."""
    batch.prove_inside(
        np.array([region.size for region in source], np.uint64),
        np.array([region.size for region in target.regions], np.uint64),
    )
    ours = [region.reshape(-1) for region in source]
    for here, there, start, end, length in copies(batch):
        target.regions[there][end : end + length] = ours[here][start : start + length]
        target.writes[there][end : end + length] += 1


def held_heads(tp_rank: int, tp_size: int, heads: int) -> list[int]:
    """Return the heads of a rank: its equal part, or the one that it shares with its neighbours."""
    return [
        head
        for head in range(heads)
        if (head * tp_size // heads == tp_rank if tp_size <= heads else tp_rank * heads // tp_size == head)
    ]


def paged(
    logical: Bytes,
    heads: Iterable[int],
    positions: Iterable[int],
    pages: Sequence[int],
    pool: int,
    fill: int,
    order: PageOrder = PageOrder.TOKEN_HEAD,
) -> Bytes:
    """Return one KV buffer of ``pool`` pages that holds some heads of the request's pages.

    ``logical`` has shape (pages of the request, tokens of a page, 1 or K and V, heads, bytes); its page
    ``positions[i]`` lies in page ``pages[i]`` of the buffer, as ``order`` says. All else is ``fill``.
    """
    dims = order.value.split()
    kept = logical[:, :, :, list(heads)]
    if "kv" not in dims:
        dims = ["kv", *dims]  # of length 1
    axes = ["token", "kv", "head"]
    turned = kept.transpose([0, *(1 + axes.index(dim) for dim in dims), 4])
    buffer = np.full((pool, int(np.prod(turned.shape[1:]))), fill, np.int64)
    for position, page in zip(positions, pages, strict=True):
        buffer[page] = turned[position].reshape(-1)
    return buffer


def spread(items: Bytes, stride: int, fill: int) -> Bytes:
    """Return items of shape (items, bytes) as they lie ``stride`` bytes apart: flat, without a last gap."""
    out = np.full((len(items), stride), fill, np.int64)
    out[:, : items.shape[1]] = items
    return out.reshape(-1)[: (len(items) - 1) * stride + items.shape[1]]


def shard(whole: Bytes, blocks: Sequence[int], tp_rank: int, tp_size: int, units: int) -> Bytes:
    """Return one TP rank's part of a state item of shape (outer, sliced, bytes): of each block its units."""
    parts, start = [], 0
    for length in blocks:
        unit = length // units
        starts = [start + unit * held for held in held_heads(tp_rank, tp_size, units)]
        parts += [whole[:, first : first + unit] for first in starts]
        start += length
    return np.concatenate(parts, axis=1)
