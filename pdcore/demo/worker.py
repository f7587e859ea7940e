"""A worker process of the demo as the router sees it."""

from __future__ import annotations

from pdcore.demo.child import Child
from pdcore.demo.messages import Drop, Event, Serve, Stop, WorkerSettings, decode_event
from pdcore.model import Role, RoomId

__all__ = ["Worker"]


class Worker(Child[Event]):
    """A prefill or decode rank; its first event is Ready or Fatal. ``title`` names it within its side."""

    def __init__(self, role: Role, settings: WorkerSettings) -> None:
        super().__init__(f"pdcore.demo.{role.value}", settings, decode_event)
        self.role = role
        self.topology = settings.topology

    @property
    def title(self) -> str:
        """The side, and which rank of it this is where it has several."""
        place = self.topology
        parts = [f"dp {place.dp_rank}"] if place.dp_size > 1 else []
        parts += [f"rank {place.unique_rank}"] if place.group_size > 1 else []
        return " ".join((self.role.value, *parts))

    def serve(self, room: RoomId, tokens: int, bootstrap: str = "", held: int = 0) -> None:
        """Have it serve a request; what follows ``tokens`` is for decode, see :class:`Serve`."""
        self.send(Serve(room, tokens, bootstrap, held))

    def drop(self, room: RoomId) -> None:
        """Have it give a request up."""
        self.send(Drop(room))

    def ask_to_stop(self) -> None:
        """Ask the process to end; ``finish`` waits for it."""
        self.send(Stop())
