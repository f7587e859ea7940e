"""Rooms that ended or fell silent, and who waits for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pdcore.model import Deadline, RoomId
from pdcore.protocol.room import Room

__all__ = ["Endings"]


class Endings:
    """Of one manager, until ``finished`` returns them. The lock guards all fields."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._told: dict[RoomId, Room] = {}
        self._waiting = 0
        self._shut = False

    def tell(self, room: Room) -> None:
        """A room has ended, or fell silent since."""
        with self._changed:
            if not room.cleared:
                self._told[room.room] = room
            if self._waiting:
                self._changed.notify_all()

    def forget(self, room: Room) -> None:
        """A room was cleared: nobody asks for it any more."""
        with self._changed:
            if self._told.get(room.room) is room:
                del self._told[room.room]

    def wait(self, room: Room, deadline: Deadline) -> None:
        """Wait until a room has ended; also until the deadline, the room's own, or the end of all waits."""
        with self._changed:
            self._wait_for(lambda: room.over, deadline, lambda: room.deadline)

    def finished(self, deadline: Deadline, due: Callable[[], float | None]) -> list[RoomId] | None:
        """Wait for rooms that ended, or fell silent after that, and were neither returned since nor cleared.

        [] at the deadline, or once all waits are over and nothing is left. None: ``due``, the moment at which
        the next room misses its deadline, has come.
        """
        with self._changed:
            self._wait_for(lambda: bool(self._told), deadline, due)
            if self._told or self._shut or _left(deadline) <= 0:
                ended = list(self._told)
                self._told.clear()
                return ended
            return None

    def shut(self) -> None:
        """End every wait, now and later: the manager is closed."""
        with self._changed:
            self._shut = True
            self._changed.notify_all()

    def sooner(self) -> None:
        """A room may have an earlier deadline than those before it: who waits looks anew."""
        if self._waiting:
            with self._changed:
                self._changed.notify_all()

    def _wait_for(
        self, ready: Callable[[], bool], deadline: Deadline, due: Callable[[], float | None]
    ) -> None:
        self._waiting += 1
        try:
            while not (ready() or self._shut):
                left, first = _left(deadline), due()
                if first is not None:
                    left = min(left, first - time.monotonic())
                if left <= 0:
                    return
                self._changed.wait(left)
        finally:
            self._waiting -= 1


def _left(deadline: Deadline) -> float:
    try:
        return deadline.remaining()
    except Exception:  # its clock is the caller's
        return 0.0
