"""What sender and receiver have in common: a room that a scheduler polls, waits for and clears."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial, wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from pdcore.arguments import require_deadline
from pdcore.checks.scalars import shown, whole
from pdcore.errors import ArgumentError, ForkedError, KVTransferError, PDCoreError
from pdcore.events import Events
from pdcore.events.metrics import RequestMetrics
from pdcore.host.fork import Birthplace
from pdcore.model import Deadline, Generation, KVPoll, RoomId
from pdcore.protocol import words
from pdcore.protocol.room import Room
from pdcore.protocol.stimuli import Clear, GiveUp, Stimulus, Tick
from pdcore.rooms.endings import Endings

__all__ = ["NOT_ENDED", "Feeds", "RoomHandle", "raises_or_fails", "stillborn"]

NOT_ENDED = "the room has not ended"

P = ParamSpec("P")
H = TypeVar("H", bound="RoomHandle")
R = TypeVar("R", bound=Room)


class Feeds(Protocol):
    """What a handle needs of its manager."""

    endings: Endings
    events: Events

    def feed(self, stimulus: Stimulus) -> None:
        """Tell the machine what happened, and have done what it wants."""


def stillborn(kind: Callable[..., R], room: object, failure: KVTransferError) -> R:
    """Return a room of some kind that could not be opened: FAILED, and known to no machine.

    Its generation is 0, which no manager gives; what can be no room's id is -1.
    """
    number, now = whole(room), time.monotonic()
    record = kind(RoomId(-1 if number is None else number), Generation(0), now, now)
    record.status, record.failure, record.ended_at, record.silent = KVPoll.FAILED, failure, now, True
    return record


def raises_or_fails(call: Callable[Concatenate[H, P], None]) -> Callable[Concatenate[H, P], None]:
    """Have a call of the scheduler end the room with what it would raise, where ``may_raise`` is False.

    In a room that was FAILED from birth it does nothing. What is no error of pdcore is raised anyway.
    """

    @wraps(call)
    def guarded(self: H, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.may_raise:
            call(self, *args, **kwargs)
        elif not self.stillborn:
            self.attempt(partial(call, self, *args, **kwargs))

    return guarded


class RoomHandle(ABC):
    """One request on one side; made by a manager and called by one scheduler thread.

    Its ``record`` belongs to the machine, which alone writes it; reading a field needs no lock.

    Where ``may_raise`` is False, the calls with which a request is handed in, and ``fail``, raise no
    :class:`~pdcore.errors.PDCoreError`: the room is FAILED, and ``failure`` says why. ``stillborn``: it was
    so from birth, since it could not be opened. The manager knows nothing of such a handle: no ``finished``
    returns it, and clearing it leaves another room of that id alone.
    """

    side: str

    def __init__(self, host: Feeds, record: Room, *, may_raise: bool = True) -> None:
        self.record = record
        self.events = host.events
        self.may_raise = may_raise
        self.stillborn = not record.generation
        self._feed, self._endings = host.feed, host.endings
        self._birthplace = Birthplace()

    @property
    def room(self) -> RoomId:
        """The room."""
        return self.record.room

    def poll(self) -> KVPoll:
        """Return the state of the room; never waits.

        Raises:
            ForkedError: in a child process, as all methods but those that only tell.
        """
        self._require_here()
        return self.record.status

    def wait(self, deadline: Deadline) -> KVPoll:
        """Wait until the room ends or the deadline passes; return its state.

        A room whose own deadline passes meanwhile has failed when this returns.

        Raises:
            ArgumentError: what is handed in is no deadline.
        """
        self._require_here()
        record = self.record
        self._endings.wait(record, require_deadline("the deadline of wait()", deadline))
        if not record.over and record.deadline <= time.monotonic():
            self._feed(Tick())
        return record.status

    def failure(self) -> KVTransferError | None:
        """Return why the room failed, or None."""
        return self.record.failure

    def abort(self) -> None:
        """Give the request up; it ends as FAILED unless it has ended. The other side is told."""
        self._require_here()
        self.give_up(words.aborted(self.side, self.room))

    @raises_or_fails
    def fail(self, error: PDCoreError) -> None:
        """End the room as FAILED with the caller's error, unless it has ended; the other side is told it.

        What is no :class:`~pdcore.errors.KVTransferError` gets the code of its kind.

        Raises:
            ArgumentError: what is handed in is no error of pdcore.
        """
        self._require_here()
        if not isinstance(error, PDCoreError):
            raise ArgumentError(
                f"fail() of room {self.room} was refused",
                f"{shown(error)}, where an error of pdcore is due",
                "hand in a KVTransferError, which says what happened, what there is and what to do",
            )
        self.give_up(KVTransferError.of(error))

    def clear(self) -> None:
        """Forget the room, so that its id can be used again; aborts it if it has not ended."""
        self._require_here()
        if not self.stillborn:
            self._feed(Clear(self.record.generation))
            self._endings.forget(self.record)

    def give_up(self, failure: KVTransferError) -> None:
        """End the room as FAILED and tell the other side, unless it had ended."""
        if not self.record.over:
            self._feed(GiveUp(self.record.generation, failure))

    def attempt(self, action: Callable[[], object]) -> bool:
        """Do something for the room; whatever it raises ends the room on both sides. False if it did.

        What is no error of pdcore is raised on: somebody's code is broken, and must be told of.
        """
        try:
            action()
        except ForkedError as error:  # what the other threads held here stays so: nobody can be told
            record = self.record
            record.failure, record.status = KVTransferError.of(error), KVPoll.FAILED
            record.ended_at = record.opened_at
        except PDCoreError as error:
            self.give_up(KVTransferError.of(error))
        except Exception as error:
            self.give_up(self.broken(error))
            raise
        else:
            return True
        return False

    def broken(self, error: BaseException) -> KVTransferError:
        """Return why the room fails for which something raised this."""
        if isinstance(error, PDCoreError):
            return KVTransferError.of(error)
        return words.broken(self.side, self.room, error)

    def release_safe(self) -> bool:
        """Return whether pages, slots and state items may be reused.

        True once the room has ended and no byte of it can move any more.
        """
        self._require_here()
        return self.record.silent

    @abstractmethod
    def unsafe_because(self) -> str:
        """Return by peer why ``release_safe`` is false; "" if it is true. From any thread."""

    @abstractmethod
    def metric(self) -> RequestMetrics:
        """Return the figures of this request so far."""

    def fell_silent(self) -> None:  # noqa: B027 - there may be nothing to give back
        """Called once no byte of the room can move any more, by who carries actions out."""

    def _require_here(self) -> None:
        if not self.stillborn:
            self._birthplace.require("a room's handle")
