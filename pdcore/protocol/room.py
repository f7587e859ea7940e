"""What one request is on one side, and the turn in which a machine handles one stimulus."""

from __future__ import annotations

import heapq

import attrs

from pdcore.errors import FailureCode, KVTransferError, RoomError
from pdcore.model import TERMINAL, Generation, KVPoll, RoomId
from pdcore.protocol.actions import Action, Ended, Forget, Post, Silent
from pdcore.wire import Abort, Failure, Message, Route

__all__ = ["Awaited", "Room", "Turn", "may_follow", "require_cleared"]


def may_follow(current: KVPoll, new: KVPoll) -> bool:
    """Return whether a room may move: FAILED and SUCCESS are final, other moves only go up."""
    return current not in TERMINAL and (new > current or new is KVPoll.FAILED)


@attrs.frozen
class Awaited:
    """What a room waits for and of whom, and what can be done about it."""

    what: str
    to_do: str


@attrs.define(eq=False)
class Room:
    """One life of a room. Moments are of the machine's clock, in seconds.

    ``silent``: it has ended, and no byte of it can move any more. ``met_at``: both sides know each other;
    ``first_at``: a byte can move; 0 until then.
    """

    room: RoomId
    generation: Generation
    opened_at: float
    deadline: float
    status: KVPoll = KVPoll.BOOTSTRAPPING
    failure: KVTransferError | None = None
    ended_at: float | None = None
    cleared: bool = False
    silent: bool = False
    met_at: float = 0.0
    first_at: float = 0.0

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in TERMINAL

    @property
    def at_rest(self) -> bool:
        """Whether no byte of it is on its way, and none will be once it has ended."""
        return True

    def rise(self, status: KVPoll) -> None:
        """Move up, unless it is past that: FAILED and SUCCESS are final."""
        if may_follow(self.status, status):
            self.status = status

    def farewell(self, failure: KVTransferError, now: float) -> Abort:
        """Return the word that it was given up, for who was not asked for it."""
        age, ended = now - self.opened_at, now - (self.ended_at or now)
        return Abort(self.room, self.generation, Failure.of(failure), asked=False, age=age, ended=ended)

    def missed(self, awaited: Awaited, now: float) -> KVTransferError:
        """Return the error of a room whose deadline passed."""
        return KVTransferError(
            FailureCode.DEADLINE,
            f"room {self.room} missed its deadline",
            f"it was {self.status.name} and open for {now - self.opened_at:.1f} s; awaited: {awaited.what}",
            awaited.to_do,
        )


def require_cleared(old: Room | None) -> None:
    """Check that an id is free, of which ``old`` is the life that is known, if any.

    Raises:
        RoomError: it is open already.
    """
    if old is not None:
        raise RoomError(
            f"room {old.room} is open already",
            f"generation {old.generation}, {old.status.name}",
            "clear() the earlier request first, or use another room",
        )


class Turn:
    """One stimulus being handled: the time, what is to do, and which rooms have a deadline."""

    def __init__(self) -> None:
        self.now = 0.0
        self.newest = Generation(0)
        self.todo: list[Action] = []
        self._ends: dict[Generation, Ended | Silent] = {}
        self._forgotten: list[Forget] = []
        self._due: list[tuple[float, Generation, Room]] = []
        self._open = 0

    def actions(self) -> list[Action]:
        """Return what shall be done: peers are told that a room has ended before those who wait for it."""
        if self._ends:
            self.todo += self._ends.values()
            self._ends = {}
        if self._forgotten:
            self.todo += self._forgotten
            self._forgotten = []
        return self.todo

    @property
    def due(self) -> float | None:
        """The moment at which the next room misses its deadline, or None."""
        while self._due and self._due[0][2].over:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def expect(self, room: Room) -> None:
        """Remember the deadline of a room that is opened."""
        self.newest = max(self.newest, room.generation)
        self._open += 1
        self._remember(room)

    def hurry(self, room: Room, deadline: float) -> None:
        """A room has an earlier deadline than it had."""
        room.deadline = deadline
        self._remember(room)

    def _remember(self, room: Room) -> None:
        if len(self._due) > 2 * self._open + 64:  # or those that have ended are kept until theirs
            self._due = [entry for entry in self._due if not entry[2].over and entry[0] == entry[2].deadline]
            heapq.heapify(self._due)
        heapq.heappush(self._due, (room.deadline, room.generation, room))

    def overdue(self) -> list[Room]:
        """Return the rooms that have not ended although their deadline passed."""
        overdue: list[Room] = []
        while self._due and self._due[0][0] <= self.now:
            room = heapq.heappop(self._due)[2]
            if not room.over and room.deadline <= self.now:
                overdue.append(room)
        return overdue

    def do(self, action: Action) -> None:
        """Have something done, after what was said before."""
        self.todo.append(action)

    def post(self, route: Route, message: Message) -> None:
        """Have a message sent."""
        self.todo.append(Post(route, message))

    def end(self, room: Room, failure: KVTransferError | None = None) -> bool:
        """End a room, as FAILED if there is a failure; False if it had ended before. Silent if at rest."""
        if room.over:
            return False
        at_rest = room.at_rest
        # First: whatever interrupts this, it is told.
        self._ends[room.generation] = Ended(room.generation, at_rest)
        # The status last: who reads it without a lock sees why, and whether the pages may be used again.
        room.failure, room.ended_at, room.silent = failure, self.now, at_rest
        room.status = KVPoll.SUCCESS if failure is None else KVPoll.FAILED
        self._open -= 1
        return True

    def silence(self, room: Room) -> None:
        """No byte of a room that has ended can move any more."""
        if not room.silent:
            now = room.generation in self._ends
            self._ends[room.generation] = Ended(room.generation, True) if now else Silent(room.generation)
            room.silent = True

    def forget(self, room: Room) -> None:
        """Nothing of a room is kept."""
        self._forgotten.append(Forget(room.generation))
