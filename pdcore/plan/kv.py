"""The KV pages of one request from one prefill rank to one decode rank, whatever their groups' sizes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pdcore.contract.regions import WriteBatch
from pdcore.layout.kv import KVLayout
from pdcore.pairing.sharding import shared_units
from pdcore.pairing.topology import CPSenders, Share, Topology, kv_share
from pdcore.plan.batches import join
from pdcore.plan.indices import IndexArray, check_lists
from pdcore.plan.items import ItemCopier
from pdcore.plan.pieces import PieceCopier, Pieces

__all__ = ["KVCopier"]

WHAT = "KV page"

CP_BLOCK_TOKENS = 256
"""Context-parallel ranks take turns at blocks of about this many tokens: long enough to be merged,
short enough that each has a part of a chunk."""


class KVCopier:
    """Plans a prefill rank's KV pages for one decode rank; made once per pairing.

    The pair must be without :func:`~pdcore.pairing.misfits.pairing_misfits`. ``local_regions`` and
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
        self._items = local.pages_of(local.smallest), remote.pages_of(remote.smallest)
        self._cp = prefill.cp_size, prefill.cp_rank
        self._takes_turns = prefill.cp_size > 1 and prefill.cp_senders is CPSenders.ALL_RANKS
        self._block = max(1, CP_BLOCK_TOKENS // local.page_size)
        units = shared_units(prefill, decode, local, remote)
        shares = {count: kv_share(prefill, decode, count) for count in set(units.values())}
        there = {b.name: (b, region) for b, region in zip(remote.buffers, remote_regions, strict=True)}
        wholes: list[tuple[int, int, int]] = []
        cuts: list[tuple[Pieces, int, int]] = []
        for buffer, region in zip(local.buffers, local_regions, strict=True):
            other, target = there[buffer.name]
            share = shares[units[buffer.name]]
            if share is None:
                continue
            if not share.whole:
                sides = (buffer.item_len, buffer.stride), (other.item_len, other.stride)
                cuts.append((_heads(share, *sides, local.rows_of(buffer)), region, target))
            elif buffer.stride == other.stride == buffer.item_len:
                wholes.append((buffer.item_len, region, target))
            else:
                cuts.append((Pieces.whole(buffer.item_len, buffer.stride, other.stride), region, target))
        self._copiers: list[ItemCopier | PieceCopier] = []
        if wholes:
            lens, here, targets = zip(*wholes, strict=True)
            self._copiers.append(ItemCopier(WHAT, lens, here, targets, *self._items))
        if cuts:
            pieces, here, targets = zip(*cuts, strict=True)
            self._copiers.append(PieceCopier(WHAT, pieces, here, targets, *self._items))

    @property
    def sends(self) -> bool:
        """Whether this rank sends KV to that decode rank at all."""
        return bool(self._copiers)

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
        if not self._copiers or len(local) == 0:
            return WriteBatch.empty()
        if self._takes_turns:
            check_lists(WHAT, local, remote, *self._items)
            size, rank = self._cp
            mine = np.arange(first, start + len(pages)) // self._block % size == rank
            local, remote = local[mine], remote[mine]
        batches = [copy(local, remote) for copy in self._copiers]
        return batches[0] if len(batches) == 1 else join(batches)


@lru_cache(maxsize=256)
def _heads(share: Share, ours: tuple[int, int], theirs: tuple[int, int], rows: int) -> Pieces:
    """Return the heads that a page gives to one of the other side: a piece per row, wherever heads lie.

    ``ours`` and ``theirs`` are bytes of a page and to the next. Most layers are alike, so few are made.
    """
    here, there = ours[0] // rows, theirs[0] // rows
    head = here // share.prefill_count
    row = np.arange(rows, dtype=np.uint64)
    return Pieces(
        ours[1],
        theirs[1],
        row * np.uint64(here) + np.uint64(share.prefill_first * head),
        row * np.uint64(there) + np.uint64(share.decode_first * head),
        np.full(rows, share.count * head, np.uint64),
    )
