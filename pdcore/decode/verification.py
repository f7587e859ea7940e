"""With ``transfer.verify``: compares the digests of what prefill sent with those of what arrived."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np

from pdcore.errors import FailureCode, KVTransferError
from pdcore.memory.digest import digests_of, memory_of
from pdcore.memory.pools import Pools
from pdcore.model import KVPoll
from pdcore.prefill.lanes.lane import Lane
from pdcore.protocol.actions import Compare
from pdcore.protocol.room import Room
from pdcore.protocol.stimuli import Compared, Stimulus
from pdcore.wire import Digests

__all__ = ["ArrivedVerification"]

_log = logging.getLogger("pdcore.transfer")


class ArrivedVerification:
    """Works on a ``lane``, after bytes that came packed are in their pages; None: nothing is verified."""

    def __init__(self, lane: Lane | None, pools: Pools, feed: Callable[[Stimulus], None]) -> None:
        self._feed = feed
        self._lane = lane
        self._regions, self._kv = pools.regions, len(pools.kv)
        self._memory = [] if lane is None else memory_of(pools.regions)
        self._limits = np.array([region.length for region in pools.regions])

    def begin(self, record: Room, do: Compare) -> bool:
        """Start to verify what a prefill rank says it sent; False if nothing is to be verified."""
        return self._lane is not None and self._lane.put(partial(self._check, record, do))

    def _check(self, record: Room, do: Compare) -> None:
        if record.status is not KVPoll.FAILED:
            self._feed(Compared(do.generation, do.route, do.digests, self._failure(do.digests)))

    def _failure(self, sent: Digests) -> KVTransferError | None:
        lists = sent.regions, sent.offsets, sent.lengths, sent.digests
        if len({len(values) for values in lists}) != 1 or not self._inside(sent):
            return KVTransferError(
                FailureCode.INTEGRITY,
                f"prefill rank {sent.rank} sent digests of room {sent.room} that make no sense",
                f"{'/'.join(str(len(values)) for values in lists)} values, or bytes outside the pools",
                "run the same pdcore on both sides",
            )
        try:
            found = digests_of(self._memory, sent.regions, sent.offsets, sent.lengths)
        except Exception as error:  # a device may lack the memory; prefill waits for a verdict
            _log.exception("room %s cannot be verified", sent.room)
            return KVTransferError(
                FailureCode.INTEGRITY,
                f"what arrived for room {sent.room} cannot be digested",
                repr(error),
                "look at the device and its free memory; transfer.verify = 'off' sends without a check",
            )
        bad = np.flatnonzero(found != sent.digests)
        if not len(bad):
            return None
        first = int(bad[0])
        region, offset = self._regions[int(sent.regions[first])], int(sent.offsets[first])
        item = region.info.stride
        what = "page" if int(sent.regions[first]) < self._kv else "item"
        start, size = offset % item, int(sent.lengths[first])
        return KVTransferError(
            FailureCode.INTEGRITY,
            f"room {sent.room} arrived damaged: {what} {offset // item} of {region.name} from prefill rank "
            f"{sent.rank}",
            f"chunk {sent.chunk}, bytes {start} to {start + size} of that {what}: "
            f"CRC-32 {int(sent.digests[first]):08x} sent, {int(found[first]):08x} here; "
            f"{len(bad)} of {len(found)} digests differ",
            "send the request again; if it happens again, look at the network and memory of both machines",
        )

    def _inside(self, sent: Digests) -> bool:
        if not len(sent.regions):
            return True
        if int(sent.regions.min()) < 0 or int(sent.regions.max()) >= len(self._limits):
            return False
        room = self._limits[sent.regions] - sent.lengths
        return bool((sent.lengths > 0).all() and (sent.offsets >= 0).all() and (sent.offsets <= room).all())
