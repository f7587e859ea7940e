"""Steps that take time: one context manager measures them and reports how they ended."""

from __future__ import annotations

import time
from enum import Enum
from types import TracebackType

import attrs

from pdcore.events.dispatch import Events
from pdcore.events.kinds import Event
from pdcore.model import PeerIdentity, RoomId

__all__ = ["Stage", "StageEnded", "stage"]


class Stage(Enum):
    """A step that takes time and may fail."""

    ENGINE_START = "engine_start"
    REGISTER_MEMORY = "register_memory"
    ANNOUNCE = "announce"
    """Prefill registers with the bootstrap service."""
    CONNECT = "connect"
    """Prefill's engine connects to a decode rank and prepares its plans."""
    ADMIT = "admit"
    """Decode's engine admits the writes of a prefill rank."""
    PLAN = "plan"
    """The copies of one chunk are computed."""
    CLOSE = "close"


@attrs.frozen
class StageEnded(Event):
    """A stage ended after ``seconds``; ``error`` is what it raised, or None."""

    stage: Stage
    seconds: float
    error: BaseException | None
    room: RoomId | None
    peer: PeerIdentity | None


class stage:  # noqa: N801 - a context manager reads like a statement
    """``with stage(events, Stage.PLAN) as planning``: takes the time and emits one StageEnded.

    ``seconds`` is there after the end, whether somebody listens or not.
    """

    __slots__ = ("_began", "_events", "_name", "_peer", "_room", "seconds")

    def __init__(
        self, events: Events, name: Stage, *, room: RoomId | None = None, peer: PeerIdentity | None = None
    ) -> None:
        self._events = events
        self._name = name
        self._room = room
        self._peer = peer
        self.seconds = 0.0

    def __enter__(self) -> stage:
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._began
        if self._events.on:
            self._events.emit(
                StageEnded(self._events.node, self._name, self.seconds, error, self._room, self._peer)
            )
