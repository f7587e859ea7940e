"""All worker processes of a run: started together, found by replica, stopped in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec

from pdcore.demo.child import Gone
from pdcore.demo.groups import Groups
from pdcore.demo.messages import Fatal, Ready, Stopped, WorkerSettings
from pdcore.demo.worker import Worker
from pdcore.errors import PDCoreError
from pdcore.model import Deadline, Role, RoomId

__all__ = ["Fleet", "WorkerError", "started"]

START_SECONDS = 90.0
STOP_SECONDS = 30.0


class WorkerError(PDCoreError):
    """A worker process did not start, or said something that it should not."""


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
                worker.ask_to_stop()
            last = [event for worker in side for event in worker.finish(deadline)]
            stopped[role] = [event for event in last if isinstance(event, Stopped)]
        return [*stopped[Role.PREFILL], *stopped[Role.DECODE]]


@contextmanager
def started(settings: WorkerSettings, groups: Groups) -> Iterator[Fleet]:
    """Start all ranks of both groups, and kill those that run in the end.

    Raises:
        WorkerError: one could not start; the message is its own.
    """
    deadline = Deadline.after(START_SECONDS)
    first, *others = groups.ranks(Role.PREFILL)
    with ExitStack() as stack:

        def start(role: Role, **changes: object) -> Worker:
            changed = msgspec.structs.replace(settings, dp=groups.dp, **changes)
            return stack.enter_context(Worker(role, changed))

        workers = [start(Role.PREFILL, topology=first)]
        workers += [start(Role.DECODE, topology=rank) for rank in groups.ranks(Role.DECODE)]
        ready = _ready(workers[0], deadline)
        workers += [start(Role.PREFILL, topology=rank, bootstrap=ready.bootstrap) for rank in others]
        for worker in workers[1:]:
            _ready(worker, deadline)
        yield Fleet(groups, workers, ready)


def _ready(worker: Worker, deadline: Deadline) -> Ready:
    event = worker.read(deadline)
    if isinstance(event, Ready):
        return event
    said = event.error if isinstance(event, Fatal) else event.how if isinstance(event, Gone) else repr(event)
    raise WorkerError(
        f"the {worker.title} worker did not start",
        said if event is not None else f"no answer within {START_SECONDS:g} s",
        "look at what it logged; `pdcore doctor` says what a backend needs",
    )
