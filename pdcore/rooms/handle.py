"""What sender and receiver have in common: a room that a scheduler polls, waits for and clears."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial, wraps
from typing import Concatenate, ParamSpec, TypeVar

from pdcore.arguments import require_deadline
from pdcore.checks.scalars import shown
from pdcore.errors import ArgumentError, FailureCode, ForkedError, KVTransferError, PDCoreError
from pdcore.events import Events, RoomEnded, RoomOpened
from pdcore.events.metrics import RequestMetrics
from pdcore.model import Deadline, KVPoll, RoomId
from pdcore.rooms.status import Awaited, Room, RoomTable

__all__ = ["NOT_ENDED", "RoomHandle", "raises_or_fails"]

NOT_ENDED = "the room has not ended"

_log = logging.getLogger("pdcore.manager")

P = ParamSpec("P")
H = TypeVar("H", bound="RoomHandle")


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

    Where ``may_raise`` is False, the calls with which a request is handed in, and ``fail``, raise no
    :class:`~pdcore.errors.PDCoreError`: the room is FAILED, and ``failure`` says why. ``stillborn``: it was
    so from birth, since it could not be opened. The manager knows nothing of such a handle: no ``finished``
    returns it, and clearing it leaves another room of that id alone.
    """

    side: str

    def __init__(self, rooms: RoomTable, record: Room, events: Events, *, may_raise: bool = True) -> None:
        self.record = record
        self.events = events
        self.may_raise = may_raise
        self.stillborn = record.status.terminal
        self._rooms = rooms
        record.miss = self.miss
        if events.on and not self.stillborn:
            events.emit(RoomOpened(events.node, record.room, record.generation))

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
        status = self._rooms.wait(self.record, require_deadline("the deadline of wait()", deadline))
        if not status.terminal and self.record.overdue:
            self.miss()
        return self.record.status

    def failure(self) -> KVTransferError | None:
        """Return why the room failed, or None."""
        return self.record.failure

    def abort(self) -> None:
        """Give the request up; it ends as FAILED unless it has ended. The other side is told."""
        self._require_here()
        self.give_up(
            KVTransferError(
                FailureCode.ABORTED,
                f"{self.side} aborted room {self.room}",
                "abort() was called",
                "send the request again if it is still wanted",
            )
        )

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
        if not self.record.status.terminal:
            self.abort()
        self._rooms.clear(self.record)
        self._forget()

    @abstractmethod
    def give_up(self, failure: KVTransferError) -> bool:
        """End the room as FAILED and tell the other side; False if it had ended before."""

    def attempt(self, action: Callable[[], object]) -> bool:
        """Do something for the room; whatever it raises ends the room on both sides. False if it did.

        What is no error of pdcore is raised on: somebody's code is broken, and must be told of.
        """
        try:
            action()
        except ForkedError as error:  # what the other threads held here stays so: nobody can be told
            self.record.fail_alone(KVTransferError.of(error))
        except PDCoreError as error:
            self.give_up(KVTransferError.of(error))
        except Exception as error:
            self.give_up(
                KVTransferError(
                    FailureCode.ENGINE,
                    f"something raised on the {self.side} side while it worked on room {self.room}",
                    repr(error),
                    f"look at the {self.side} side's log, and report it",
                )
            )
            raise
        else:
            return True
        return False

    def miss(self) -> None:
        """End the room as FAILED because its deadline passed, and say what was awaited; from any thread."""
        record = self.record
        try:
            failure = record.missed(self.awaited())
        # It is made of what other threads change; a room that cannot say what it awaited fails as well.
        except Exception:
            _log.exception("room %s cannot say what it awaited", record.room)
            failure = record.missed()
        try:
            self.give_up(failure)
        except Exception:  # who waits for this room, or for others, is not to hear of it
            _log.exception("room %s could not be given up in order", record.room)
        self._rooms.move(record, KVPoll.FAILED, failure)
        self._look_for_silence()

    @abstractmethod
    def awaited(self) -> Awaited:
        """Return what the room waits for now, and of whom; from any thread."""

    @abstractmethod
    def release_safe(self) -> bool:
        """Return whether pages, slots and state items may be reused.

        True once the room has ended and no byte of it can move any more.
        """

    @abstractmethod
    def unsafe_because(self) -> str:
        """Return by peer why ``release_safe`` is false; "" if it is true. From any thread."""

    @abstractmethod
    def metric(self) -> RequestMetrics:
        """Return the figures of this request so far."""

    def _end(
        self,
        status: KVPoll,
        failure: KVTransferError | None = None,
        tell: Callable[[], None] | None = None,
    ) -> bool:
        """End the room, have the other side told, then who listens, then wake who waits.

        False if it had ended before.
        """

        def tell_both() -> None:
            if tell is not None:
                tell()
            record = self.record
            self.events.emit(
                RoomEnded(self.events.node, record.room, record.generation, failure, self.metric())
            )

        record, telling = self.record, tell_both if self.events.on else tell
        if not self._rooms.move(record, status, failure, tell=telling, silent=self._silent):
            return False
        if not self._silent:  # meanwhile
            self._rooms.moves_yet(record)
        self._look_for_silence()
        return True

    def _look_for_silence(self) -> None:
        """Have ``finished`` tell again of a room that has ended, if nothing of it can move any more."""
        if self.record.status.terminal and self._silent:
            self._rooms.fell_silent(self.record)

    @property
    @abstractmethod
    def _silent(self) -> bool:
        """Whether no byte of the room can move now; if so once it has ended, then for good."""

    def _require_here(self) -> None:
        if not self.stillborn:
            self._rooms.birthplace.require("a room's handle")

    @abstractmethod
    def _forget(self) -> None:
        """Have the manager drop it."""
