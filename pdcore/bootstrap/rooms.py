"""Which prefill DP rank took a room: told by prefill, asked by decode, forgotten after a while."""

from __future__ import annotations

from collections import OrderedDict

from pdcore.model import Clock, RoomId

__all__ = ["RoomRanks"]

ROOM_SECONDS = 600.0
"""A room is remembered so long, for every rank of decode may ask. Its id shall not be used again before,
or decode may ask before the next life is told, and be sent where the last one was."""


class RoomRanks:
    """DP ranks by room, the oldest first, ``most`` of them. Owned by the service's loop."""

    def __init__(self, clock: Clock, most: int) -> None:
        self._clock, self._most = clock, most
        self._ranks: OrderedDict[RoomId, tuple[int, float]] = OrderedDict()

    def register(self, rooms: tuple[RoomId, ...], dp_rank: int) -> None:
        """Note who took these rooms; the last word counts."""
        now = self._clock()
        for room in rooms:
            self._ranks.pop(room, None)
            self._ranks[room] = (dp_rank, now + ROOM_SECONDS)
        while self._ranks and (len(self._ranks) > self._most or next(iter(self._ranks.values()))[1] < now):
            self._ranks.popitem(last=False)

    def of(self, room: RoomId) -> int | None:
        """Return the DP rank that took a room, if that is known."""
        found = self._ranks.get(room)
        return found[0] if found is not None and found[1] >= self._clock() else None
