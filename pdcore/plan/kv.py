"""The KV pages of one request from one prefill rank to one decode rank, whatever their groups' sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pdcore.layout import KVLayout
from pdcore.plan.indices import IndexArray, check_lists
from pdcore.plan.items import ItemCopier
from pdcore.plan.pieces import PieceCopier, Pieces
from pdcore.regions import WriteBatch
from pdcore.topology import CPSenders, Share, Topology, kv_share

__all__ = ["KVCopier"]

CP_BLOCK_TOKENS = 256
"""Context-parallel ranks take turns at blocks of about this many tokens: long enough to be merged,
short enough that each has a part of a chunk."""


class KVCopier:
    """Plans a prefill rank's KV pages for one decode rank; made once per pairing.

    The pair must be without :func:`~pdcore.pairing.pairing_misfits`. ``local_regions`` and
    ``remote_regions`` are the engine regions of each layout's buffers. Buffers are paired by name, that
    is by absolute layer id and part, so the rank sends the layers of its own pipeline stage.
    """

    def __init__(
        self,
        prefill: Topology,
        decode: Topology,
        local: KVLayout,
        remote: KVLayout,
        local_regions: Sequence[int],
        remote_regions: Sequence[int],
    ) -> None:
        self._page_size = local.page_size
        self._items = local.num_pages, remote.num_pages
        self._cp = prefill.cp_size, prefill.cp_rank
        self._takes_turns = prefill.cp_size > 1 and prefill.cp_senders is CPSenders.ALL_RANKS
        self._block = max(1, CP_BLOCK_TOKENS // local.page_size)
        share = kv_share(prefill, decode, local.units)
        self._copy: ItemCopier | PieceCopier | None = None
        if share is None:
            return
        there = {b.name: n for n, b in enumerate(remote.buffers)}
        paired = [there[b.name] for b in local.buffers]
        targets = [remote_regions[n] for n in paired]
        if share.whole:
            lens = [b.item_len for b in local.buffers]
            self._copy = ItemCopier("KV page", lens, local_regions, targets, *self._items)
        else:
            pieces = [
                _head_slice(
                    share, buffer.item_len // local.page_size, remote.buffers[n].item_len // local.page_size
                )
                for buffer, n in zip(local.buffers, paired, strict=True)
            ]
            self._copy = PieceCopier(
                "KV page", pieces, local_regions, targets, *self._items, parts=local.page_size
            )

    @property
    def sends(self) -> bool:
        """Whether this rank sends KV to that decode rank at all."""
        return self._copy is not None

    def __call__(
        self, pages: IndexArray, start: int, wanted: IndexArray, decode_prefix_len: int = 0
    ) -> WriteBatch:
        """Return the copies of one chunk: pages ``start:start + len(pages)`` of the request.

        ``decode_prefix_len`` is in tokens and rounded down to whole pages: a page that decode holds in
        part is sent whole. ``wanted`` are all the pages that decode lacks, so none after a full hit.
        Whatever the chunks are, together they copy the same bytes.

        Raises:
            PlanError: decode named fewer pages than that, or an index leaves a pool.
        """
        prefix = decode_prefix_len // self._page_size
        held = min(max(prefix - start, 0), len(pages))
        first = start + held
        local, remote = pages[held:], wanted[first - prefix : start + len(pages) - prefix]
        if self._copy is None or len(local) == 0:
            return WriteBatch.empty()
        if self._takes_turns:
            check_lists("KV page", local, remote, *self._items)
            size, rank = self._cp
            mine = np.arange(first, start + len(pages)) // self._block % size == rank
            local, remote = local[mine], remote[mine]
        return self._copy(local, remote)


def _head_slice(share: Share, here: int, there: int) -> Pieces:
    """Return the heads of one token, of which ``here`` and ``there`` bytes lie on either side."""
    head = here // share.prefill_count
    return Pieces(
        here,
        there,
        np.array([share.prefill_first * head], np.uint64),
        np.array([share.decode_first * head], np.uint64),
        np.array([share.count * head], np.uint64),
    )
