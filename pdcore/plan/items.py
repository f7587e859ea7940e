"""Copies of whole items: KV pages over all layers at once, state slots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pdcore.contract.regions import WriteBatch
from pdcore.plan.indices import IndexArray, check_lists
from pdcore.plan.runs import merge_runs

__all__ = ["ItemCopier"]


class ItemCopier:
    """Plans copies of items between equal buffers of two sides; made once per pairing.

    Buffer ``b`` is engine region ``local_regions[b]`` here and ``remote_regions[b]`` there, and
    holds ``local_items`` and ``remote_items`` items of ``item_lens[b]`` bytes.
    """

    def __init__(
        self,
        what: str,
        item_lens: Sequence[int],
        local_regions: Sequence[int],
        remote_regions: Sequence[int],
        local_items: int,
        remote_items: int,
    ) -> None:
        self._what = what
        self._item_lens = np.array(item_lens, np.uint64).reshape(-1, 1)
        self._local_regions = np.array(local_regions, np.int64)
        self._remote_regions = np.array(remote_regions, np.int64)
        self._pair_index = np.arange(len(item_lens) + 1)
        self._items = local_items, remote_items

    def __call__(self, local: IndexArray, remote: IndexArray) -> WriteBatch:
        """Return the batch that copies item ``local[i]`` of every buffer to ``remote[i]``.

        Raises:
            PlanError: the lists differ in length, or an index is outside its side's buffers.
        """
        check_lists(self._what, local, remote, *self._items)
        runs = merge_runs(local, remote)
        count = len(runs.counts)
        lens = self._item_lens
        if count == 0 or len(lens) == 0:
            return WriteBatch.empty()
        return WriteBatch(
            self._local_regions,
            self._remote_regions,
            self._pair_index * count,
            (runs.local.view(np.uint64) * lens).ravel(),
            (runs.remote.view(np.uint64) * lens).ravel(),
            (runs.counts.view(np.uint64) * lens).ravel(),
        )
