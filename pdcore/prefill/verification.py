"""With ``transfer.verify``: a room succeeds only once decode has found the bytes that were sent.

When all of a room has landed, its copies are planned again and the digests of the sources sent to
each decode rank, chunk by chunk. Decode digests what arrived and answers with a verdict. The pages
belong to the transfer all the while, so nobody else has changed them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np

from pdcore.errors import FailureCode, KVTransferError
from pdcore.memory.digest import SAMPLED, Verify, digests_of, memory_of, spans_of
from pdcore.memory.pools import Pools
from pdcore.memory.region_table import RegionTable
from pdcore.model import Deadline
from pdcore.plan import join
from pdcore.prefill.lanes.lane import Lane
from pdcore.prefill.link import PeerLink
from pdcore.prefill.sender import KVSender
from pdcore.protocol.send.early import Destination
from pdcore.protocol.stimuli import Examined, Stimulus
from pdcore.wire import FRAME_BYTES, Digests, Route

__all__ = ["SentVerification"]

MOST_AT_ONCE = 2**16
"""Digests in one message: 2 MiB of them."""
DIGEST_BYTES = 32

_log = logging.getLogger("pdcore.transfer")


class SentVerification:
    """Owns the thread ``pdcore-lane-sent``, unless nothing is to be verified."""

    def __init__(
        self,
        verify: Verify,
        pools: Pools,
        rank: int,
        link_at: Callable[[Route], PeerLink | None],
        feed: Callable[[Stimulus], None],
    ) -> None:
        self._most = SAMPLED if verify == "sample" else None
        self._pools, self._rank, self._link_at, self._feed = pools, rank, link_at, feed
        self._lane = None if verify == "off" else Lane("sent")
        self._memory = [] if verify == "off" else memory_of(pools.regions)

    def begin(self, sender: KVSender) -> None:
        """Have a room examined that is sent in full; never waits."""
        assert self._lane is not None  # the machine asks for it only where something is to be verified
        self._lane.put(partial(self._examine, sender))

    def close(self, deadline: Deadline) -> None:
        """End the thread."""
        if self._lane is not None:
            self._lane.close()
            self._lane.join(deadline)

    def _examine(self, sender: KVSender) -> None:
        record, failure = sender.record, None
        found: list[tuple[Route, Digests]] = []
        try:
            for destination in record.destinations:
                if not destination.peer.facts.dummy:
                    found += [(destination.peer.route, one) for one in self._evidence(sender, destination)]
        # A third party may have planned the state, and its plan is run again; the room must end.
        except Exception as error:
            _log.exception("room %s cannot be examined", sender.room)
            failure = KVTransferError(
                FailureCode.INTEGRITY,
                f"room {sender.room} cannot be verified",
                repr(error),
                "report it; transfer.verify = 'off' sends without a check",
            )
        self._feed(Examined(record.generation, tuple(found), failure))

    def _evidence(self, sender: KVSender, destination: Destination) -> list[Digests]:
        """Return the digests of each chunk that copied anything to a destination."""
        wanted, link = destination.wanted, self._link_at(destination.peer.route)
        if link is None or link.identity != destination.peer.identity:
            return []  # it is lost, and the room has ended
        there = link.description
        table = RegionTable.of(there.layout, there.state, there.aux_memory, there.aux_slots)
        strides = np.array([expected.stride for expected in table.expected])
        out = []
        for number, chunk in enumerate(sender.sent.chunks_to(link.identity)):
            if sender.record.over:
                break
            batch = join(link.plan(chunk, wanted))
            spans = spans_of(batch, strides, self._most, sender.room)
            found = digests_of(self._memory, spans.local_regions, spans.local_offsets, spans.lengths)
            columns = spans.remote_regions, spans.remote_offsets, spans.lengths, found
            most = min(MOST_AT_ONCE, (destination.peer.facts.limit - FRAME_BYTES) // DIGEST_BYTES)
            for part in range(0, len(found), most):
                regions, offsets, lengths, digests = (column[part : part + most] for column in columns)
                which = wanted.room, wanted.generation, self._rank, number, part
                out.append(Digests(*which, regions, offsets, lengths, digests))
        return out
