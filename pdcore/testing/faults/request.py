"""One request of the faulty pair: its two sides, and what each holds until that may be reused."""

from __future__ import annotations

import attrs

from pdcore.model import KVPoll
from pdcore.protocol.room import may_follow
from pdcore.rooms.handle import RoomHandle
from pdcore.testing.faults.memory import WatchedMemory

__all__ = ["BrokenInvariantError", "WatchedRequest", "WatchedSide"]


class BrokenInvariantError(AssertionError):
    """Something happened that must never happen."""


@attrs.define(eq=False)
class WatchedSide:
    """One side of a request: its handle and what it holds until that is safe to reuse."""

    handle: RoomHandle
    memory: WatchedMemory
    pages: list[int]
    slot: int
    seen: KVPoll = KVPoll.BOOTSTRAPPING
    cleared: bool = False
    released: bool = False

    @property
    def name(self) -> str:
        return f"room {self.handle.room} generation {self.handle.record.generation} on {self.handle.side}"

    def look(self) -> bool:
        """Follow the room; return whether it ended just now."""
        state = self.handle.poll()
        if state is self.seen:
            return False
        if not may_follow(self.seen, state):
            raise BrokenInvariantError(f"{self.name} went from {self.seen.name} to {state.name}")
        self.seen = state
        return state.terminal

    def reclaim(self) -> None:
        """Take the pages back if that is safe, once the end was seen and what arrived was looked at."""
        if self.released or not self.handle.release_safe():
            return
        if not self.handle.poll().terminal:
            raise BrokenInvariantError(f"{self.name} may be reused before it has ended")
        if self.seen.terminal:
            self.released = True
            self.memory.give_back(self.pages, self.slot)


@attrs.define(eq=False)
class WatchedRequest:
    """One use of a room. ``serial`` is what its pages are filled from.

    Every third decode holds some of the pages already, and of those prefill every other time announces and
    sends only the rest.
    """

    serial: int
    count: int
    prefill: WatchedSide | None = None
    decode: WatchedSide | None = None
    sent: int = attrs.field(init=False)
    complete: bool = False

    def __attrs_post_init__(self) -> None:
        self.sent = self.start

    @property
    def held(self) -> int:
        """How many pages decode holds."""
        return 0 if self.serial % 3 else self.serial % (self.count + 1)

    @property
    def start(self) -> int:
        """The first page that prefill announces."""
        return self.held if self.serial % 2 else 0

    @property
    def sides(self) -> list[WatchedSide]:
        return [side for side in (self.prefill, self.decode) if side is not None]
