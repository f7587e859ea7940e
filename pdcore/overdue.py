"""Ends the rooms that missed their deadline."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pdcore.chores import Chores
from pdcore.handle import RoomHandle
from pdcore.model import KVPoll, RoomId
from pdcore.status import RoomTable

__all__ = ["end_overdue"]


def end_overdue(rooms: RoomTable, find: Callable[[RoomId], RoomHandle | None], chores: Chores) -> None:
    """Have each room that missed its deadline give up; one that raises instead fails all the same."""
    for record in rooms.expired():
        handle, missed = find(record.room), record.missed()
        if handle is not None and handle.record is record:
            chores.do(f"ending room {record.room}", partial(handle.give_up, missed))
            rooms.move(record, KVPoll.FAILED, missed)
