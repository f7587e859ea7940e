"""A subscriber that keeps every event, and lets a test wait for one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from pair import soon

from pdcore.events import Event, RoomEvent, StageEnded
from pdcore.model import Role

__all__ = ["Recorder"]

EventT = TypeVar("EventT", bound=Event)


class Recorder:
    """Keeps events in the order they came. The lock guards ``_events``."""

    def __init__(self) -> None:
        self._came = threading.Condition(threading.RLock())
        self._events: list[Event] = []

    def __call__(self, event: Event) -> None:
        with self._came:
            self._events.append(event)
            self._came.notify_all()

    def __len__(self) -> int:
        return len(self._events)

    def of(self, kind: type[EventT], role: Role | None = None) -> list[EventT]:
        """Return the events of one kind, of one side."""
        with self._came:
            return [e for e in self._events if isinstance(e, kind) and role in (None, e.node.role)]

    def names(self, role: Role, room: int | None = None) -> list[str]:
        """Return what came from one side, of one room, by the names of kinds and stages."""
        return [
            e.stage.value if isinstance(e, StageEnded) else type(e).__name__
            for e in self.of(Event, role)
            if room is None or room == (e.room if isinstance(e, RoomEvent | StageEnded) else None)
        ]

    def wait_for(
        self, kind: type[EventT], role: Role, fits: Callable[[EventT], bool] = lambda _: True
    ) -> EventT:
        """Return the first event of a kind from one side that fits, waiting for it."""
        deadline = soon()
        with self._came:
            while not (found := [e for e in self.of(kind, role) if fits(e)]):
                assert self._came.wait(deadline.remaining()), f"no {kind.__name__} among {self._events}"
            return found[0]
