"""With ``transfer.verify``: a room succeeds only once decode has found the bytes that were sent.

When all of a room has landed, its copies are planned again and the digests of the sources sent to
each decode rank, chunk by chunk. Decode digests what arrived and answers with a verdict. The pages
belong to the transfer all the while, so nobody else has changed them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

import attrs
import numpy as np

from pdcore.errors import FailureCode, KVTransferError
from pdcore.memory.digest import SAMPLED, Verify, digests_of, memory_of, spans_of
from pdcore.memory.pools import Pools, RegionTable
from pdcore.model import Deadline, Generation, RoomId
from pdcore.plan import join
from pdcore.prefill.lane import Lane
from pdcore.prefill.link import Destination
from pdcore.prefill.sender import KVSender
from pdcore.wire import FRAME_BYTES, Digests, Message, Route, Verdict

__all__ = ["SentVerification"]

MOST_AT_ONCE = 2**16
"""Digests in one message: 2 MiB of them."""
DIGEST_BYTES = 32

_log = logging.getLogger("pdcore.transfer")


@attrs.define(eq=False)
class _Case:
    """A room that waits for verdicts: by route, decode's generation, chunk and part."""

    sender: KVSender
    outstanding: set[tuple[Route, Generation, int, int]]


class SentVerification:
    """Owns the thread ``pdcore-lane-examiner``, unless nothing is to be verified.

    The lock guards ``_cases``.
    """

    def __init__(
        self, verify: Verify, pools: Pools, rank: int, post: Callable[[Destination, Message], None]
    ) -> None:
        self._most = SAMPLED if verify == "sample" else None
        self._pools, self._rank, self._post = pools, rank, post
        self._lane = None if verify == "off" else Lane("examiner")
        self._memory = [] if verify == "off" else memory_of(pools.regions)
        self._lock = threading.Lock()
        self._cases: dict[RoomId, _Case] = {}

    def begin(self, sender: KVSender, destinations: Sequence[Destination]) -> bool:
        """Have a room examined that is sent in full; False if nothing is to be verified."""
        if self._lane is None:
            return False
        with self._lock:
            self._cases = {r: c for r, c in self._cases.items() if not c.sender.record.status.terminal}
            known = self._cases.get(sender.room)
            if known is None or known.sender is not sender:
                case = self._cases[sender.room] = _Case(sender, set())
                self._lane.put(partial(self._examine, case, destinations))
        return True

    def heard(self, route: Route, verdict: Verdict) -> None:
        """Take a verdict; the last good one ends the room, as does the first bad one."""
        with self._lock:
            case = self._cases.get(verdict.room)
            key = route, verdict.generation, verdict.chunk, verdict.part
            if case is None or key not in case.outstanding:
                return
            case.outstanding.discard(key)
            done = not case.outstanding or verdict.failure is not None
            if done:
                del self._cases[verdict.room]
        if verdict.failure is not None:
            case.sender.give_up(verdict.failure.error())
        elif done:
            case.sender.conclude()

    def close(self, deadline: Deadline) -> None:
        """End the thread."""
        if self._lane is not None:
            self._lane.close()
            self._lane.join(deadline)

    def _examine(self, case: _Case, destinations: Sequence[Destination]) -> None:
        try:
            out = [(d, m) for d in destinations if not d.link.dummy for m in self._evidence(case.sender, d)]
        # A third party may have planned the state, and its plan is run again; the room must end.
        except Exception as error:
            _log.exception("room %s cannot be examined", case.sender.room)
            failure = KVTransferError(
                FailureCode.INTEGRITY,
                f"room {case.sender.room} cannot be verified",
                repr(error),
                "report it; transfer.verify = 'off' sends without a check",
            )
            case.sender.give_up(failure)
            return
        with self._lock:
            case.outstanding = {(d.link.route, m.generation, m.chunk, m.part) for d, m in out}
        for destination, message in out:
            self._post(destination, message)
        if not out:
            case.sender.conclude()

    def _evidence(self, sender: KVSender, destination: Destination) -> list[Digests]:
        """Return the digests of each chunk that copied anything to a destination."""
        there, wanted = destination.link.description, destination.wanted
        table = RegionTable.of(there.layout, there.state, there.aux_memory, there.aux_slots)
        strides = np.array([expected.stride for expected in table.expected])
        out = []
        for number, chunk in enumerate(sender.chunks_to(destination)):
            if sender.record.status.terminal:
                break
            batch = join(destination.link.plan(chunk, wanted))
            spans = spans_of(batch, strides, self._most, sender.room)
            found = digests_of(self._memory, spans.local_regions, spans.local_offsets, spans.lengths)
            columns = spans.remote_regions, spans.remote_offsets, spans.lengths, found
            most = min(MOST_AT_ONCE, (destination.link.message_limit - FRAME_BYTES) // DIGEST_BYTES)
            for part in range(0, len(found), most):
                rows = (column[part : part + most] for column in columns)
                out.append(Digests(wanted.room, wanted.generation, self._rank, number, part, *rows))
        return out
