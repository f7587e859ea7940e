"""Decode ranks that have a room open and have yet to say where they want it."""

from __future__ import annotations

import threading
from collections import OrderedDict

import attrs

from pdcore.model import Generation, RoomId
from pdcore.prefill.link import PeerLink
from pdcore.wire import Route

__all__ = ["Expected", "Guest"]

MOST = 65_536


@attrs.frozen(eq=False)
class Guest:
    """A decode rank that has a room open."""

    link: PeerLink
    generation: Generation


class Expected:
    """At most ``MOST`` rooms, with the newest life at each decode rank. The lock guards ``_rooms``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rooms: OrderedDict[RoomId, dict[Route, Guest]] = OrderedDict()

    def add(self, room: RoomId, guest: Guest) -> None:
        """Expect a rank in a room."""
        with self._lock:
            self._rooms[room] = {**self._rooms.get(room, {}), guest.link.route: guest}
            if len(self._rooms) > MOST:
                self._rooms.popitem(last=False)

    def of(self, room: RoomId) -> list[Guest]:
        """Return who is expected in a room."""
        return list(self._rooms.get(room, {}).values())

    def came(self, room: RoomId, route: Route) -> None:
        """Expect a rank no more: it has asked, or given up."""
        if room in self._rooms:
            with self._lock:
                guests = {r: guest for r, guest in self._rooms.pop(room, {}).items() if r != route}
                if guests:
                    self._rooms[room] = guests

    def take(self, room: RoomId) -> list[Guest]:
        """Take all that are expected in a room."""
        if room not in self._rooms:
            return []
        with self._lock:
            return list(self._rooms.pop(room, {}).values())

    def lost(self, link: PeerLink) -> dict[RoomId, Generation]:
        """Expect a lost rank nowhere; return the rooms that it had open, with its life of each."""
        with self._lock:
            known = [(room, guests.get(link.route)) for room, guests in self._rooms.items()]
        rooms = {room: guest.generation for room, guest in known if guest is not None}
        for room in rooms:
            self.came(room, link.route)
        return rooms
