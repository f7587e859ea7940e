"""A worker process of the demo as the router sees it."""

from __future__ import annotations

from pdcore.demo.child import Child, Gone
from pdcore.demo.messages import Event, Serve, Stop, WorkerSettings, decode_event
from pdcore.model import Deadline, Role, RoomId

__all__ = ["Worker"]


class Worker(Child[Event]):
    """A prefill or decode process; its first event is Ready or Fatal."""

    def __init__(self, role: Role, settings: WorkerSettings) -> None:
        super().__init__(f"pdcore.demo.{role.value}", settings, decode_event)
        self.role = role

    def serve(self, room: RoomId, tokens: int, bootstrap: str = "") -> None:
        """Have it serve a request; a decode worker needs the address that the prefill worker reported."""
        self.send(Serve(room, tokens, bootstrap))

    def stop(self, deadline: Deadline) -> list[Event | Gone]:
        """Ask the process to end, and kill it at the deadline; return its last events."""
        self.send(Stop())
        return self.finish(deadline)
