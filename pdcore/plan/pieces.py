"""Copies of pieces of items: between buffers whose items the TP ranks of both sides cut differently."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.contract.regions import OffsetArray, WriteBatch
from pdcore.plan.batches import join
from pdcore.plan.indices import IndexArray, check_lists

__all__ = ["PieceCopier", "Pieces"]


@attrs.frozen(eq=False)
class Pieces:
    """The pieces of one buffer's items, in bytes; the arrays are uint64 of shape (pieces,).

    From one item to the next it is ``local_stride`` bytes here and ``remote_stride`` there. Piece ``m`` is
    ``lengths[m]`` bytes from ``local_offsets[m]`` within an item on here, and ``remote_offsets[m]`` there.
    """

    local_stride: int
    remote_stride: int
    local_offsets: OffsetArray
    remote_offsets: OffsetArray
    lengths: OffsetArray

    @classmethod
    def whole(cls, item_len: int, local_stride: int, remote_stride: int) -> Pieces:
        """Return an item in one piece: of buffers whose items are no neighbours, so that none are merged."""
        start = np.zeros(1, np.uint64)
        return cls(local_stride, remote_stride, start, start, np.array([item_len], np.uint64))


@attrs.frozen(eq=False)
class _EqualBuffers:
    """``B`` buffers whose items have as many pieces, ``M``: regions (B,), strides (B, 1, 1), the others
    (B, 1, M)."""

    regions: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    strides: tuple[OffsetArray, OffsetArray]
    offsets: tuple[OffsetArray, OffsetArray]
    lengths: OffsetArray


class PieceCopier:
    """Plans copies of pieces between the buffers of two sides; made once per pairing.

    Buffer ``b`` is engine region ``local_regions[b]`` here and ``remote_regions[b]`` there. Buffers may
    have different numbers of pieces.
    """

    def __init__(
        self,
        what: str,
        pieces: Sequence[Pieces],
        local_regions: Sequence[int],
        remote_regions: Sequence[int],
        local_items: int,
        remote_items: int,
    ) -> None:
        self._what = what
        self._items = local_items, remote_items
        rows = list(zip(pieces, local_regions, remote_regions, strict=True))
        counts = dict.fromkeys(len(p.lengths) for p in pieces)
        self._groups = [_group([row for row in rows if len(row[0].lengths) == n]) for n in counts if n]

    def __call__(self, local: IndexArray, remote: IndexArray) -> WriteBatch:
        """Return the batch that copies the pieces of item ``local[i]`` of every buffer to ``remote[i]``.

        Raises:
            PlanError: the lists differ in length, or an index is outside its side's buffers.
        """
        check_lists(self._what, local, remote, *self._items)
        if len(local) == 0:
            return WriteBatch.empty()
        # A loop over the different numbers of pieces, of which there are few.
        return join([_batch(group, local, remote) for group in self._groups])


def _group(rows: Sequence[tuple[Pieces, int, int]]) -> _EqualBuffers:
    pieces = [p for p, _, _ in rows]
    strides = ([p.local_stride for p in pieces], [p.remote_stride for p in pieces])
    offsets = ([p.local_offsets for p in pieces], [p.remote_offsets for p in pieces])
    return _EqualBuffers(
        (np.array([here for _, here, _ in rows]), np.array([there for _, _, there in rows])),
        (np.array(strides[0], np.uint64)[:, None, None], np.array(strides[1], np.uint64)[:, None, None]),
        (np.stack(offsets[0])[:, None, :], np.stack(offsets[1])[:, None, :]),
        np.stack([p.lengths for p in pieces])[:, None, :],
    )


def _batch(group: _EqualBuffers, local: IndexArray, remote: IndexArray) -> WriteBatch:
    buffers, _, parts = group.lengths.shape
    here, there = (
        (items.view(np.uint64)[None, :, None] * strides + offsets).reshape(-1)
        for items, strides, offsets in zip((local, remote), group.strides, group.offsets, strict=True)
    )
    count = len(local) * parts
    lengths = np.broadcast_to(group.lengths, (buffers, len(local), parts)).reshape(-1)
    return WriteBatch(*group.regions, np.arange(buffers + 1) * count, here, there, lengths)
