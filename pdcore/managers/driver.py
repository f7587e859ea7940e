"""Feeds one side's machine, and carries out what it wants: the only place where both meet threads."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pdcore.errors import PDCoreError, RoomError
from pdcore.model import Generation
from pdcore.pairing.description import PeerDescription
from pdcore.protocol.actions import (
    Action,
    Admit,
    Connect,
    Dial,
    Ended,
    Find,
    Forget,
    Lost,
    Post,
    Silent,
)
from pdcore.protocol.history.log import LoggedStimulus, Recording, StimulusLog
from pdcore.protocol.history.picture import picture
from pdcore.protocol.machine import Machine, Settings
from pdcore.protocol.stimuli import GiveUp, GroupFailed, OpenReceive, OpenSend, PeerFailed, Stimulus
from pdcore.protocol.words import raised
from pdcore.rooms.handle import RoomHandle

__all__ = ["Carriers", "Driver"]

H = TypeVar("H", bound=RoomHandle)
T = TypeVar("T")

Carriers = Mapping[type[Any], Callable[[Any], object]]
"""What carries out each kind of action; none may block."""

ENDS = frozenset({Ended, Silent, Forget})
"""What a turn of the machine ends with."""
REPEATABLE = Post | Ended | Silent | Lost | Forget
"""What does no harm if it is carried out again; of the rest, a part may have been done."""

_log = logging.getLogger("pdcore.manager")


class Driver:
    """Any thread may ``feed``. Actions are carried out one by one, in the order in which the machine wanted
    them, by whichever thread is at it already, else by the one that fed: no thread waits for another's I/O.

    The lock guards the machine, the ``log`` of what it was told, ``handles`` as they come, and who is
    ``_carrying``; it is held for as long as the machine thinks, and never while an action is carried out.
    """

    def __init__(self, machine: Machine, carriers: Carriers, log: StimulusLog) -> None:
        self._lock = threading.Lock()
        self._machine, self._carriers, self._log = machine, carriers, log
        self._todo: deque[Action] = deque()
        self._carrying = False
        self._numbers = itertools.count(1)
        self.handles: dict[Generation, RoomHandle] = {}

    def generation(self) -> Generation:
        """Return the number of the next life of a room."""
        return Generation(next(self._numbers))

    def open(self, stimulus: OpenSend | OpenReceive, make: Callable[[Any], H]) -> H:
        """Open a room; ``make`` makes its handle of the machine's room, and must not block.

        Raises:
            RoomError: it cannot be opened.
        """
        with self._lock:
            self._handle_all((stimulus,))
            handle = make(self._machine.room(stimulus.generation))
            self.handles[stimulus.generation] = handle
        self._carry_out()
        return handle

    def feed(self, *stimuli: Stimulus) -> None:
        """Tell the machine what happened, several things if they came together, and have done what it wants.

        What peers are told of all of them comes before who waits here is woken: this thread has not more to
        say then, for which both would want the interpreter.

        Raises:
            RoomError: the scheduler's call is not one that its room can have now; nothing has changed.
        """
        with self._lock:
            self._handle_all(stimuli)
        self._carry_out()

    def look(self, question: Callable[[Machine], T]) -> T:
        """Ask the machine something, while nobody feeds it."""
        with self._lock:
            return question(self._machine)

    def entries(self) -> tuple[LoggedStimulus, ...]:
        """Return what the machine was told lately, the oldest first."""
        with self._lock:
            return self._log.entries()

    def recording(self, ours: PeerDescription, settings: Settings) -> Recording:
        """Return that, and the state which the machine has reached by it."""
        with self._lock:
            return self._log.recording(ours, settings, picture(self._machine))

    # --- inside ------------------------------------------------------------------------------

    def _handle_all(self, stimuli: Sequence[Stimulus]) -> None:
        """Have the machine handle them in order, and line up what it wants, the ends of rooms last."""
        ends: list[Action] = []
        try:
            for stimulus in stimuli:
                self._handle(stimulus, ends)
        finally:
            self._todo += ends  # not a call, in which Ctrl-C might come

    def _handle(self, stimulus: Stimulus, ends: list[Action]) -> None:
        """Have the machine handle it, and line up what it wants, but what ends rooms in ``ends``; noted after
        that, since Ctrl-C may come."""
        now, acted = time.monotonic(), True
        try:
            actions = self._machine.handle(stimulus, now)
            acted = bool(actions)
            for action in actions:
                (ends if type(action) in ENDS else self._todo).append(action)
        except RoomError:
            self._log.note(stimulus, now, acted=True)
            raise
        except Exception as error:  # a defect: who waits for that room must hear of it, and others go on
            _log.exception("handling %s failed", type(stimulus).__name__)
            self._todo.extend(self._machine.recover(stimulus, error))
        except BaseException as error:  # as of Ctrl-C: it is half done
            self._todo.extend(self._machine.recover(stimulus, error))
            raise
        self._log.note(stimulus, now, acted=acted)

    def _carry_out(self) -> None:
        """Carry out what is to be done, unless a thread is at it."""
        todo, carriers, mine = self._todo, self._carriers, False
        if not todo:  # what was wanted, if anything, is in the hands of who is at it
            return
        try:
            with self._lock:
                if self._carrying or not todo:
                    return
                self._carrying = mine = True
            while True:
                while todo:
                    action = todo[0]
                    del todo[0]  # not a call, in which Ctrl-C might come with an action in nobody's hand
                    try:
                        carriers[type(action)](action)
                    except Exception as error:  # engines, subscribers, pools of third parties are behind it
                        self._failed(action, error)
                    except BaseException as error:
                        if isinstance(action, REPEATABLE):
                            todo.appendleft(action)
                        self._failed(action, error)
                        raise
                with self._lock:
                    if not todo:
                        self._carrying = mine = False
                        return
        except BaseException:  # as of Ctrl-C in the caller's thread: the next who feeds goes on
            if mine:
                self._carrying = False
            raise

    def _failed(self, action: Action, error: BaseException) -> None:
        """Have the machine tell who waits for what could not be carried out."""
        generation = getattr(action, "generation", None)
        handle = self.handles.get(generation) if generation is not None else None
        if not isinstance(error, PDCoreError) or handle is None:
            _log.error("%s could not be carried out", type(action).__name__, exc_info=error)
        if handle is not None:
            self.feed(GiveUp(handle.record.generation, handle.broken(error)))
        elif isinstance(action, Connect | Admit | Dial):
            failure = raised(f"pairing with {action.identity}", error)
            self.feed(PeerFailed(action.route, action.identity, failure))
        elif isinstance(action, Find):
            self.feed(GroupFailed(action.key, raised(f"looking for {action.key}", error)))
