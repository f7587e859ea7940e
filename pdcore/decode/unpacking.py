"""Takes bytes that came packed out of their slots: to the pages of their room, and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np

from pdcore.errors import FailureCode, KVTransferError
from pdcore.memory.packing import Entries, unpack
from pdcore.memory.pools import Pools
from pdcore.memory.staging import StagingMemory
from pdcore.plan import IndexArray, spread
from pdcore.prefill.lanes.lane import Lane
from pdcore.protocol.actions import Unpack
from pdcore.protocol.stimuli import BytesUnpacked, Stimulus
from pdcore.rooms.claims import Claim, Claims
from pdcore.wire import Packed

__all__ = ["ArrivedSlots"]

_log = logging.getLogger("pdcore.transfer")


class ArrivedSlots:
    """Works on a ``lane``. ``claims`` tells which pages, slots and items a room has."""

    def __init__(
        self,
        memory: StagingMemory,
        pools: Pools,
        claims: Claims,
        lane: Lane,
        feed: Callable[[Stimulus], None],
    ) -> None:
        self._memory, self._claims, self._lane, self._feed = memory, claims, lane, feed
        self._limits = np.array([region.length for region in pools.regions])
        self._strides = np.array([region.info.stride for region in pools.regions])
        table, pool_of = pools.table, np.zeros(len(pools.regions), np.int64)
        pool_of[list(table.aux)] = 1
        for number, regions in enumerate(table.state):
            pool_of[list(regions)] = 2 + number
        self._pool_of = pool_of

    def begin(self, do: Unpack, claim: Claim | None) -> None:
        """Take out what lies in a slot, after what came before it; never waits."""
        if not self._lane.put(partial(self._unpack, do, claim)):
            self._tell(do, _closing(do.packed))

    def _unpack(self, do: Unpack, claim: Claim | None) -> None:
        packed = do.packed
        try:
            wrong = self._wrong(packed, claim)
            if not wrong:
                offsets, lengths = packed.offsets.view(np.uint64), packed.lengths.view(np.uint64)
                slot = self._memory.slot(do.ring, packed.slot, int(packed.lengths.sum()))
                unpack(self._memory.pools, Entries(packed.regions, packed.starts, offsets, lengths), slot)
            failure = _refused(packed, wrong) if wrong else None
        except Exception as error:  # a device may lack the memory; the room must end
            _log.exception("a slot of room %s cannot be unpacked", packed.room)
            failure = _refused(packed, repr(error))
        self._tell(do, failure)

    def _tell(self, do: Unpack, failure: KVTransferError | None) -> None:
        self._feed(BytesUnpacked(do.generation, do.identity, do.packed, failure))

    def _wrong(self, packed: Packed, claim: Claim | None) -> str:
        """Return what is wrong with the entries that a peer names: each lies within what its room has, or a
        forged one could reach the pages of another."""
        regions, starts, offsets, lengths = packed.regions, packed.starts, packed.offsets, packed.lengths
        layout, n = self._memory.layout, len(packed.lengths)
        if claim is None:
            return "the room has no pages any more"
        if not 0 <= packed.slot < layout.slots:
            return f"slot {packed.slot}, there are {layout.slots}"
        counts = starts[1:] - starts[:-1]
        if not (
            len(offsets) == n > 0 and len(starts) == len(regions) + 1 and starts[0] == 0 and starts[-1] == n
        ):
            return f"{len(regions)} regions, {len(starts)} starts, {len(offsets)} offsets, {n} lengths"
        if counts.min() < 1 or regions.min() < 0 or regions.max() >= len(self._limits):
            return f"regions {regions.tolist()[:8]} of {len(self._limits)}"
        limits = self._limits[regions].repeat(counts)
        bad = (lengths < 1) | (offsets < 0) | (lengths > limits) | (offsets > limits - lengths)
        if np.count_nonzero(bad):
            return f"{int(np.count_nonzero(bad))} of {n} entries leave their region"
        if (nbytes := int(lengths.sum())) > layout.slot_bytes:
            return f"{nbytes} bytes in a slot of {layout.slot_bytes}"
        return self._foreign(claim, regions, counts, offsets, lengths)

    def _foreign(
        self, claim: Claim, regions: IndexArray, counts: IndexArray, offsets: IndexArray, lengths: IndexArray
    ) -> str:
        strides, pools = self._strides[regions].repeat(counts), self._pool_of[regions].repeat(counts)
        first, last = offsets // strides, (offsets + lengths - 1) // strides
        for pool in np.unique(pools).tolist():
            mine = pools == pool
            items = spread(first[mine], (last - first)[mine] + 1)
            if (other := self._claims.foreign(claim, pool, items)) is not None:
                return f"{other} does not belong to it"
        return ""


def _refused(packed: Packed, why: str) -> KVTransferError:
    return KVTransferError(
        FailureCode.PLAN,
        f"bytes of room {packed.room} that came packed cannot be put where prefill says",
        why,
        "run the same pdcore on both sides; report it if they are",
    )


def _closing(packed: Packed) -> KVTransferError:
    return KVTransferError(
        FailureCode.ABORTED,
        f"bytes of room {packed.room} came while decode shuts down",
        "nobody takes them out of their slot any more",
        "send the request to another worker",
    )
