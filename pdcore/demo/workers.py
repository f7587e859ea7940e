"""The worker processes of a run as the router sees them: started together, found by replica, stopped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec

from pdcore.children import Child
from pdcore.demo.messages import Command, Drop, Event, Ready, Serve, Stopped, WorkerSettings, decode_event
from pdcore.demo.planning.groups import Groups
from pdcore.model import Deadline, Role, RoomId

__all__ = ["Fleet", "Worker", "started"]

START_SECONDS = 90.0
STOP_SECONDS = 30.0


class Worker(Child[Command, Event]):
    """A prefill or decode rank; ``title`` names it within its side. Hang up, and it ends in order."""

    def __init__(self, role: Role, settings: WorkerSettings) -> None:
        self.role = role
        self.topology = place = settings.topology
        parts = [f"dp {place.dp_rank}"] if place.dp_size > 1 else []
        parts += [f"rank {place.unique_rank}"] if place.group_size > 1 else []
        self.title = " ".join((role.value, *parts))
        super().__init__(f"the {self.title} worker", f"pdcore.demo.{role.value}", settings, decode_event)

    def ready(self, deadline: Deadline) -> Ready:
        """Return what it says once it can serve.

        Raises:
            ChildError: it could not start; the message is its own.
        """
        return self.expect(Ready, deadline, "did not start")

    def serve(self, room: RoomId, tokens: int, bootstrap: str = "", held: int = 0) -> None:
        """Have it serve a request; what follows ``tokens`` is for decode, see :class:`Serve`."""
        self.tell(Serve(room, tokens, bootstrap, held))

    def drop(self, room: RoomId) -> None:
        """Have it give a request up."""
        self.tell(Drop(room))


class Fleet:
    """The workers of both sides; ``ready`` is what the first prefill rank said, which runs the bootstrap."""

    def __init__(self, groups: Groups, workers: list[Worker], ready: Ready) -> None:
        self.groups = groups
        self.workers = workers
        self.ready = ready

    def serving(self, room: RoomId) -> list[Worker]:
        """Return the workers of the replicas that serve a room, decode's first: they ask prefill."""
        dp_ranks = {role: self.groups.dp_rank(role, room) for role in Role}
        chosen = [w for w in self.workers if w.topology.dp_rank == dp_ranks[w.role]]
        return sorted(chosen, key=lambda worker: worker.role is Role.PREFILL)

    def stop(self) -> list[Stopped]:
        """Stop all workers, decode first; return what those said that ended in order, prefill first."""
        deadline = Deadline.after(STOP_SECONDS)
        stopped: dict[Role, list[Stopped]] = {}
        for role in (Role.DECODE, Role.PREFILL):
            side = [worker for worker in self.workers if worker.role is role]
            for worker in side:
                worker.hang_up()
            last = [event for worker in side for event in worker.finish(deadline)]
            stopped[role] = [event for event in last if isinstance(event, Stopped)]
        return [*stopped[Role.PREFILL], *stopped[Role.DECODE]]


@contextmanager
def started(settings: WorkerSettings, groups: Groups) -> Iterator[Fleet]:
    """Start all ranks of both groups, and kill those that run in the end.

    Raises:
        ChildError: one could not start; the message is its own.
    """
    deadline = Deadline.after(START_SECONDS)
    first, *others = groups.ranks(Role.PREFILL)
    with ExitStack() as stack:

        def start(role: Role, **changes: object) -> Worker:
            changed = msgspec.structs.replace(settings, dp=groups.dp, **changes)
            return stack.enter_context(Worker(role, changed))

        workers = [start(Role.PREFILL, topology=first)]
        workers += [start(Role.DECODE, topology=rank) for rank in groups.ranks(Role.DECODE)]
        ready = workers[0].ready(deadline)
        workers += [start(Role.PREFILL, topology=rank, bootstrap=ready.bootstrap) for rank in others]
        for worker in workers[1:]:
            worker.ready(deadline)
        yield Fleet(groups, workers, ready)
