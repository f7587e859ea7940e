"""What is not safe yet: pages of rooms that have ended, into or out of which bytes may still move."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from pdcore.model import RoomId
from pdcore.rooms.handle import RoomHandle

__all__ = ["Unsafe", "UnsafeRoom"]


@attrs.frozen
class UnsafeRoom:
    """A room that has ended, of which ``pages`` are not safe, and ``because`` of what."""

    room: RoomId
    pages: int
    because: str


@attrs.frozen
class Unsafe:
    """All such rooms of a manager, those that were cleared too.

    ``forsaken`` counts the lost peers that were taken for silent, unproven, after ``quarantine.grace``.
    """

    rooms: tuple[UnsafeRoom, ...]
    forsaken: int = 0

    @classmethod
    def of(cls, handles: Iterable[RoomHandle], forsaken: int) -> Unsafe:
        """Look at what a manager knows."""
        ended = [handle for handle in handles if handle.record.status.terminal]
        told = [(handle, handle.unsafe_because()) for handle in ended]
        return cls(tuple(UnsafeRoom(h.room, h.metric().pages, why) for h, why in told if why), forsaken)

    @property
    def pages(self) -> int:
        """Pages of this side that may not be reused yet, in all."""
        return sum(room.pages for room in self.rooms)
