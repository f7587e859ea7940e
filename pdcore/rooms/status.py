"""The state machine of rooms: what may follow what, who is open, who has ended."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable

import attrs

from pdcore.arguments import room_id
from pdcore.checks.scalars import whole
from pdcore.errors import FailureCode, KVTransferError, RoomError
from pdcore.host.fork import Birthplace
from pdcore.model import Deadline, Generation, KVPoll, RoomId

__all__ = ["Awaited", "Room", "RoomTable", "may_follow"]


def may_follow(current: KVPoll, new: KVPoll) -> bool:
    """Return whether a room may move: FAILED and SUCCESS are final, other moves only go up."""
    return not current.terminal and (new is KVPoll.FAILED or new > current)


@attrs.frozen
class Awaited:
    """What a room waits for and of whom, and what can be done about it."""

    what: str
    to_do: str


NOT_KNOWN = Awaited("the other side", "raise the request's deadline, or look why the other side is slow")


class Room:
    """One request's record. Reading a field needs no lock; :class:`RoomTable` alone writes.

    ``miss`` ends it once its deadline has passed; whoever made the record sets it. ``silent``: it has ended,
    nothing of it can move any more, and who waits for it knows that, or will.
    """

    __slots__ = (
        "deadline", "ended_at", "failure", "generation", "miss", "opened_at", "room", "silent", "status"
    )  # fmt: skip

    def __init__(self, room: RoomId, generation: Generation, deadline: Deadline) -> None:
        self.room = room
        self.generation = generation
        self.deadline = deadline
        self.status = KVPoll.BOOTSTRAPPING
        self.failure: KVTransferError | None = None
        self.opened_at = time.monotonic()
        self.ended_at: float | None = None
        self.miss: Callable[[], object] | None = None
        self.silent = False

    @classmethod
    def stillborn(cls, room: object, failure: KVTransferError) -> Room:
        """Return the record of a room that could not be opened: FAILED, and in no table.

        Its generation is 0, which no table gives; what can be no room's id is -1.
        """
        number = whole(room)
        record = cls(RoomId(-1 if number is None else number), Generation(0), Deadline(0.0))
        record.fail_alone(failure)
        return record

    def fail_alone(self, failure: KVTransferError) -> None:
        """End as FAILED where no other thread has the record: before it is known, or in a forked child."""
        self.failure, self.status, self.ended_at = failure, KVPoll.FAILED, self.opened_at

    @property
    def overdue(self) -> bool:
        """Whether its deadline passed, or cannot tell: that must not keep other rooms from theirs."""
        try:
            return self.deadline.expired
        except Exception:  # its clock is the caller's
            return True

    def missed(self, awaited: Awaited = NOT_KNOWN) -> KVTransferError:
        """Return the error of a room whose deadline passed."""
        return KVTransferError(
            FailureCode.DEADLINE,
            f"room {self.room} missed its deadline",
            f"it was {self.status.name} and open for {time.monotonic() - self.opened_at:.1f} s; "
            f"awaited: {awaited.what}",
            awaited.to_do,
        )


class RoomTable:
    """All open rooms of one manager.

    The lock guards the rooms' fields, ``_rooms``, ``_ended`` and ``_due``.
    """

    def __init__(self) -> None:
        self.birthplace = Birthplace()
        self._changed = threading.Condition()
        self._rooms: dict[RoomId, Room] = {}
        self._ended: dict[RoomId, None] = {}
        self._due: Deadline | None = None  # no open room's deadline comes before it
        self._waiting = 0
        self._shut = False
        self._last_generation = 0

    def open(self, room: RoomId, deadline: Deadline) -> Room:
        """Open a room as BOOTSTRAPPING, with a new generation.

        Raises:
            RoomError: the room is open already, or is not an integer from 0 to 2**63 - 1.
        """
        room = room_id(room)
        with self._changed:
            old = self._rooms.get(room)
            if old is not None:
                raise RoomError(
                    f"room {room} is open already",
                    f"generation {old.generation}, {old.status.name}",
                    "clear() the earlier request first, or use another room",
                )
            self._last_generation += 1
            record = Room(room, Generation(self._last_generation), deadline)
            self._rooms[room] = record
            if self._is_due(deadline) and self._waiting:
                self._changed.notify_all()  # who waits must wake earlier
            return record

    def move(
        self,
        record: Room,
        status: KVPoll,
        failure: KVTransferError | None = None,
        *,
        tell: Callable[[], None] | None = None,
        silent: bool = False,
    ) -> bool:
        """Move a room if the rules allow it; return whether they did.

        ``tell`` is called once it has moved, without the lock, and before those who wait for the room
        are woken: a peer that waits as well is told first. ``silent``: nothing of it moves as it ends.
        """
        with self._changed:
            if not may_follow(record.status, status):
                return False
            # The order lets who reads without the lock find the failure beside FAILED.
            record.failure = failure
            record.status = status
            if status.terminal:
                record.ended_at = time.monotonic()
                record.silent = silent
                if self._rooms.get(record.room) is record:
                    self._ended[record.room] = None
        try:
            if tell is not None:
                tell()
        finally:
            if status.terminal and self._waiting:
                with self._changed:
                    self._changed.notify_all()
        return True

    def moves_yet(self, record: Room) -> None:
        """Note that something of a room that has ended can move yet."""
        with self._changed:
            record.silent = False

    def fell_silent(self, record: Room) -> None:
        """Have :meth:`finished` return a room that has ended again: nothing of it can move any more."""
        with self._changed:
            if record.silent:
                return
            record.silent = True
            if self._rooms.get(record.room) is record:
                self._ended[record.room] = None
            if self._waiting:
                self._changed.notify_all()

    def tighten(self, record: Room, deadline: Deadline) -> None:
        """Bring a room's deadline forward to one that its peer set."""
        with self._changed:
            if deadline.at < record.deadline.at:
                record.deadline = deadline
                self._is_due(deadline)

    def clear(self, record: Room) -> None:
        """Forget a room; its id may be opened again."""
        with self._changed:
            if self._rooms.get(record.room) is record:
                del self._rooms[record.room]
                self._ended.pop(record.room, None)

    def by_state(self) -> Counter[KVPoll]:
        """Return how many rooms that are not cleared are in which state."""
        with self._changed:
            rooms = list(self._rooms.values())
        return Counter(room.status for room in rooms)

    def busy(self) -> int:
        """Return how many rooms have not ended."""
        with self._changed:
            return sum(not r.status.terminal for r in self._rooms.values())

    def expired(self) -> list[Room]:
        """Return the rooms that have not ended although their deadline passed."""
        with self._changed:
            open_rooms = [r for r in self._rooms.values() if not r.status.terminal]
            overdue = [r for r in open_rooms if r.overdue]
            left = set(overdue)
            self._due = min((r.deadline for r in open_rooms if r not in left), key=_at, default=None)
        return overdue

    def wait(self, record: Room, deadline: Deadline) -> KVPoll:
        """Wait until the room has ended; return its status.

        Also at the deadline, at the room's own, or once the table was shut.
        """
        with self._changed:
            self._wait_for(lambda: record.status.terminal, deadline, lambda: record.deadline)
            return record.status

    def finished(self, deadline: Deadline, end: Callable[[list[Room]], None]) -> list[RoomId]:
        """Wait for rooms that ended, or fell silent after that, and were neither returned since nor cleared.

        [] at the deadline, or once the table was shut and nothing is left. ``end`` is called, without the
        lock, with rooms that miss their deadline meanwhile.
        """
        while True:
            with self._changed:
                self._wait_for(lambda: bool(self._ended), deadline, lambda: self._due)
                if self._ended or self._shut or _left(deadline) <= 0:
                    ended = list(self._ended)
                    self._ended.clear()
                    return ended
            end(self.expired())

    def shut(self) -> None:
        """End every wait, now and later: the manager is closed."""
        with self._changed:
            self._shut = True
            self._changed.notify_all()

    def _wait_for(
        self, ready: Callable[[], bool], deadline: Deadline, due: Callable[[], Deadline | None]
    ) -> None:
        self._waiting += 1
        try:
            while not (ready() or self._shut):
                first = due()
                left = min(_left(deadline), _left(first) if first is not None else math.inf)
                if left <= 0:
                    return
                self._changed.wait(left)
        finally:
            self._waiting -= 1

    def _is_due(self, deadline: Deadline) -> bool:
        """Note the deadline of an open room; return whether it is the first."""
        first = self._due is None or _at(deadline) < _at(self._due)
        if first:
            self._due = deadline
        return first


def _left(deadline: Deadline) -> float:
    try:
        return deadline.remaining()
    except Exception:  # its clock is the caller's
        return 0.0


def _at(deadline: Deadline) -> float:
    return deadline.at
