"""What a rank that receives says to those that send: that it has a room open, asks for it, or gave it up."""

from __future__ import annotations

from collections.abc import Collection

from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import PeerIdentity
from pdcore.protocol.peer import PrefillGroup, RemoteRank
from pdcore.protocol.peers import Peers
from pdcore.protocol.receive.receive_room import ReceiveRoom
from pdcore.protocol.room import Turn
from pdcore.wire import Abort, Failure, Inquiry, Opened, RequestMetadata, overweight, too_large

__all__ = ["Requests"]

AGAIN = 20.0
"""Seconds after which a room that has not asked says again that it is open: prefill forgets who does not."""
NEAR = 1.0
"""Seconds before its deadline in which a room asks prefill what it waits for."""


class Requests:
    """``limit``: bytes that this side takes in one message."""

    def __init__(self, turn: Turn, peers: Peers, limit: int) -> None:
        self._turn, self._peers, self._limit = turn, peers, limit

    def too_large(self, wanted: RequestMetadata, group: PrefillGroup) -> KVTransferError | None:
        """Return why a request fits in no message, or None."""
        limit = min(self._limit, *(member.facts.limit for member in group.members))
        size = overweight(wanted, limit)
        if size is None:
            return None
        what = f"the list of {len(wanted.pages)} pages"
        return too_large(what, wanted.room, size, limit, FailureCode.PLAN)

    def ask(self, room: ReceiveRoom, wanted: RequestMetadata, group: PrefillGroup) -> None:
        """Ask all of a group for a room."""
        now = self._turn.now
        request = RequestMetadata(
            wanted.room,
            wanted.generation,
            wanted.pages,
            wanted.aux_index,
            wanted.state_indices,
            wanted.decode_prefix_len,
            remaining=max(0.0, room.deadline - now),
            trace=wanted.trace,
            age=now - room.opened_at,
        )
        for member in group.members:
            self._turn.post(member.route, request)

    def look_after(self, room: ReceiveRoom) -> None:
        """Let prefill know of a room that has not asked for long; ask what it waits for, near the end."""
        group = room.group
        if room.asking:
            self._inquire(room)
        elif group is not None and group.ready:
            now, last = self._turn.now, room.announced_at
            if last is None or now - last > AGAIN:
                room.announced_at = now
                for member in group.members:
                    self._turn.post(member.route, Opened(room.room, room.generation, now - room.opened_at))

    def _inquire(self, room: ReceiveRoom) -> None:
        """Ask those that have not said that all is sent, once near the deadline."""
        if room.inquired or room.deadline - self._turn.now > NEAR:
            return
        room.inquired = True
        inquiry = Inquiry(room.room, room.generation)
        self._tell(inquiry, [who for who in room.asked if who not in room.responded])

    def abandon(self, room: ReceiveRoom, failure: KVTransferError, told: RemoteRank | None = None) -> None:
        """Tell those that were asked that a room was given up; ``told`` knows it."""
        self._abort(room, failure, [who for who in room.asked if told is None or who != told.identity])

    def remind(self, room: ReceiveRoom, failure: KVTransferError) -> None:
        """Say it again to those that may write."""
        self._abort(room, failure, [who for who in room.asked if who in room.writers])

    def _abort(self, room: ReceiveRoom, failure: KVTransferError, whom: Collection[PeerIdentity]) -> None:
        self._tell(Abort(room.room, room.generation, Failure.of(failure)), whom)

    def _tell(self, message: Abort | Inquiry, whom: Collection[PeerIdentity]) -> None:
        for identity in whom:
            self._peers.tell(identity, message)
