"""What came before its room: requests of ranks that receive, and their word that they have a room open."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import attrs

from pdcore.errors import KVTransferError
from pdcore.model import Generation, RoomId
from pdcore.protocol import words
from pdcore.protocol.peer import RemoteRank
from pdcore.wire import RequestMetadata, Route

__all__ = ["Destination", "EarlyRequests", "Guest", "Guests"]

CAPACITY = 65_536
SECONDS = 60.0
"""How long it is believed that a rank has a room open, unless it says so again."""


@attrs.frozen(eq=False)
class Destination:
    """A rank that wants a room, and where; until ``deadline``. It came at ``arrived_at``."""

    peer: RemoteRank
    wanted: RequestMetadata
    deadline: float
    arrived_at: float

    def is_for(self, route: Route, generation: Generation) -> bool:
        """Whether it is this request of a rank."""
        return self.peer.route == route and self.wanted.generation == generation


Evicted = tuple[Destination, KVTransferError]
"""A request that had to give way, and what to tell it."""


class EarlyRequests:
    """At most ``CAPACITY`` rooms, with one request of each rank that receives."""

    def __init__(self) -> None:
        self._rooms: OrderedDict[RoomId, tuple[Destination, ...]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._rooms.values()))

    def __bool__(self) -> bool:
        return bool(self._rooms)

    def put(self, destination: Destination) -> list[Evicted]:
        """Keep a request; return those that had to give way. One that is kept already stays."""
        wanted, peer = destination.wanted, destination.peer
        before = self._rooms.pop(wanted.room, ())
        if any(d.is_for(peer.route, wanted.generation) for d in before):
            self._rooms[wanted.room] = before
            return []
        again = [d for d in before if d.peer.rank == peer.rank]
        self._rooms[wanted.room] = (*(d for d in before if d not in again), destination)
        oldest = self._rooms.popitem(last=False)[1] if len(self._rooms) > CAPACITY else ()
        return [
            *((d, words.asked_again(wanted.room, d.peer.identity, peer.identity)) for d in again),
            *((d, words.too_many(CAPACITY)) for d in oldest),
        ]

    def of(self, room: RoomId) -> tuple[Destination, ...]:
        """Return the requests that wait for a room."""
        return self._rooms.get(room, ())

    def take(self, room: RoomId) -> tuple[Destination, ...]:
        """Take the requests that wait for a room."""
        return self._rooms.pop(room, ())

    def holds(self, route: Route, room: RoomId, generation: Generation) -> bool:
        """Whether a request is kept."""
        return any(d.is_for(route, generation) for d in self._rooms.get(room, ()))

    def drop_one(self, route: Route, room: RoomId, generation: Generation) -> bool:
        """Drop a request; False if it is not kept."""
        before = self._rooms.get(room)
        if before is None:
            return False
        kept = tuple(d for d in before if not d.is_for(route, generation))
        if kept:
            self._rooms[room] = kept
        else:
            del self._rooms[room]
        return len(kept) < len(before)

    def drop(self, gone: Callable[[Destination], bool]) -> list[Destination]:
        """Drop the requests that a test picks, and return them."""
        dropped = [d for kept in self._rooms.values() for d in kept if gone(d)]
        for d in dropped:
            self.drop_one(d.peer.route, d.wanted.room, d.wanted.generation)
        return dropped


@attrs.frozen(eq=False)
class Guest:
    """A rank that has a room open and has yet to say where it wants it."""

    peer: RemoteRank
    generation: Generation
    heard_at: float


class Guests:
    """At most ``CAPACITY`` rooms, with the newest life at each rank that receives, for ``SECONDS``."""

    def __init__(self) -> None:
        self._rooms: OrderedDict[RoomId, dict[Route, Guest]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rooms)

    def add(self, room: RoomId, guest: Guest) -> None:
        """Expect a rank in a room."""
        self._rooms.setdefault(room, {})[guest.peer.route] = guest
        self._rooms.move_to_end(room)
        if len(self._rooms) > CAPACITY:
            self._rooms.popitem(last=False)

    def of(self, room: RoomId) -> list[Guest]:
        """Return who is expected in a room."""
        return list(self._rooms.get(room, {}).values())

    def has(self, room: RoomId, guest: Guest) -> bool:
        """Whether it is still expected, and has said nothing since."""
        return self._rooms.get(room, {}).get(guest.peer.route) is guest

    def came(self, room: RoomId, route: Route, generation: Generation) -> None:
        """Expect a rank no more in a life of a room: it has asked, or given up."""
        guests = self._rooms.get(room)
        guest = guests.get(route) if guests is not None else None
        if guests is not None and guest is not None and guest.generation <= generation:
            del guests[route]
            if not guests:
                del self._rooms[room]

    def take(self, room: RoomId) -> list[Guest]:
        """Take all that are expected in a room."""
        return list(self._rooms.pop(room, {}).values())

    def sweep(self, now: float) -> None:
        """Forget rooms of which nothing was heard for too long: the word that they ended was lost."""
        while (
            self._rooms and max(g.heard_at for g in next(iter(self._rooms.values())).values()) < now - SECONDS
        ):
            self._rooms.popitem(last=False)

    def lost(self, peer: RemoteRank) -> dict[RoomId, Generation]:
        """Expect a lost rank nowhere; return the rooms that it had open, with its life of each."""
        known = [(room, guests.get(peer.route)) for room, guests in self._rooms.items()]
        rooms = {room: guest.generation for room, guest in known if guest is not None}
        for room, generation in rooms.items():
            self.came(room, peer.route, generation)
        return rooms
