"""Copies of pieces of items: between buffers whose items the TP ranks of both sides cut differently."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from pdcore.plan.indices import IndexArray, check_lists
from pdcore.regions import OffsetArray, WriteBatch

__all__ = ["PieceCopier", "Pieces"]

_NONE = np.zeros(0, np.uint64)


@attrs.frozen(eq=False)
class Pieces:
    """The pieces of one buffer's items, in bytes; the arrays are uint64 of shape (pieces,).

    Piece ``m`` of part ``i`` is ``lengths[m]`` bytes from ``i * local_stride + local_offsets[m]`` on
    here, and from ``i * remote_stride + remote_offsets[m]`` on there.
    """

    local_stride: int
    remote_stride: int
    local_offsets: OffsetArray
    remote_offsets: OffsetArray
    lengths: OffsetArray


class PieceCopier:
    """Plans copies of pieces between the buffers of two sides; made once per pairing.

    Buffer ``b`` is engine region ``local_regions[b]`` here and ``remote_regions[b]`` there. An item is
    ``parts`` equal parts (a page is ``page_size`` tokens), and every part has ``pieces[b]``.
    """

    def __init__(
        self,
        what: str,
        pieces: Sequence[Pieces],
        local_regions: Sequence[int],
        remote_regions: Sequence[int],
        local_items: int,
        remote_items: int,
        parts: int = 1,
    ) -> None:
        self._what = what
        self._items = local_items, remote_items
        self._local_regions = np.array(local_regions, np.int64)
        self._remote_regions = np.array(remote_regions, np.int64)
        counts = [len(p.lengths) for p in pieces]
        self._starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)))
        self._local = _columns([(p.local_stride, p.local_offsets) for p in pieces])
        self._remote = _columns([(p.remote_stride, p.remote_offsets) for p in pieces])
        self._lengths = np.concatenate([_NONE, *(p.lengths for p in pieces)])
        self._parts = np.arange(parts, dtype=np.int64)

    def __call__(self, local: IndexArray, remote: IndexArray) -> WriteBatch:
        """Return the batch that copies the pieces of item ``local[i]`` of every buffer to ``remote[i]``.

        Raises:
            PlanError: the lists differ in length, or an index is outside its side's buffers.
        """
        check_lists(self._what, local, remote, *self._items)
        count = len(local) * len(self._parts)
        if count == 0 or len(self._lengths) == 0:
            return WriteBatch.empty()
        return WriteBatch(
            self._local_regions,
            self._remote_regions,
            self._starts * count,
            self._offsets(local, *self._local),
            self._offsets(remote, *self._remote),
            self._lengths.repeat(count),
        )

    def _offsets(self, items: IndexArray, strides: OffsetArray, shifts: OffsetArray) -> OffsetArray:
        parts = (items[:, None] * len(self._parts) + self._parts).ravel().view(np.uint64)
        offsets = parts * strides
        offsets += shifts
        return offsets.ravel()


def _columns(sides: Sequence[tuple[int, OffsetArray]]) -> tuple[OffsetArray, OffsetArray]:
    strides = np.array([stride for stride, _ in sides], np.uint64).repeat([len(o) for _, o in sides])
    offsets = np.concatenate([_NONE, *(offsets for _, offsets in sides)])
    return strides.reshape(-1, 1), offsets.reshape(-1, 1)
