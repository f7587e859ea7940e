"""What ranks that receive are told of rooms that have ended, and who waits for a room that is not there.

Owns the requests that came before their room, who has one open and has not asked, and slots that they have to
take.
"""

from __future__ import annotations

from pdcore.errors import KVTransferError
from pdcore.model import Generation, KVPoll, RoomId
from pdcore.protocol import words
from pdcore.protocol.room import Turn
from pdcore.protocol.send.early import EarlyRequests, Guests
from pdcore.protocol.send.handed import HandedSlots
from pdcore.protocol.send.send_room import SendRoom
from pdcore.wire import Failure, RoomStatus, Route

__all__ = ["Answers"]


class Answers:
    """``rank`` is this side's unique rank; ``interval``: seconds until something is said again."""

    def __init__(self, turn: Turn, rank: int, interval: float) -> None:
        self._turn, self.rank = turn, rank
        self.early, self.guests = EarlyRequests(), Guests()
        self.handed = HandedSlots(turn, interval)

    def refuse(
        self,
        route: Route,
        room: RoomId,
        generation: Generation,
        failure: KVTransferError,
        *,
        drained: bool = True,
    ) -> None:
        """Tell a rank that a room has failed; ``drained``: none of its bytes is on its way."""
        self.early.drop_one(route, room, generation)  # or its next life would take it
        told = Failure.of(failure)
        self._turn.post(route, RoomStatus(room, generation, self.rank, KVPoll.FAILED, drained, told))

    def succeed(self, route: Route, room: RoomId, generation: Generation, packed: int) -> None:
        """Tell a rank that all of a room was sent, of it so many slots packed."""
        success = RoomStatus(room, generation, self.rank, KVPoll.SUCCESS, drained=True, packed=packed)
        self._turn.post(route, success)

    def tell_guests(self, room: SendRoom) -> None:
        """A room has ended: tell those who have it open and did not ask."""
        for guest in self.guests.take(room.room):
            room.heard.setdefault(guest.peer.route, guest.generation)
            room.speakers.setdefault(guest.peer.rank, guest.peer.route)
            failure = words.ended_before(room, guest.peer.rank, self._turn.now)
            self.refuse(guest.peer.route, room.room, guest.generation, failure)
