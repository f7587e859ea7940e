"""What both kinds of worker processes share: start a room for each command, report how each ends."""

from __future__ import annotations

import os
import queue
import resource
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

import attrs

from pdcore.children import Parent, brief, run_child
from pdcore.config.records import Config, Timeouts, TransferConfig, TransferModel
from pdcore.config.sources import Origin, OriginKind, load_config
from pdcore.config.structuring import Text
from pdcore.contract.engine import TransferEngine
from pdcore.demo.memory import HeldMemory, WorkerMemory
from pdcore.demo.messages import (
    Command,
    Drop,
    Event,
    Ready,
    RoomFailed,
    Serve,
    Stopped,
    WorkerSettings,
    decode_command,
)
from pdcore.errors import FailureCode, KVTransferError, PDCoreError
from pdcore.model import Deadline, RoomId
from pdcore.rooms.handle import RoomHandle
from pdcore.selection.discovery import discover
from pdcore.selection.select import Backend, select

__all__ = [
    "Job",
    "Router",
    "Serving",
    "chosen_backend",
    "configuration",
    "ready",
    "worker_main",
]

Router: TypeAlias = Parent[Command]
"""Who started a worker."""

WAKE_SECONDS = 0.2


HandleT = TypeVar("HandleT", bound=RoomHandle)


@attrs.define
class Job(Generic[HandleT]):
    """One request of this worker: its sender or receiver, and the memory it holds.

    ``opened`` and ``sent`` (the first time, by prefill) are monotonic seconds; ``submitted`` once the
    starting thread is done with it.
    """

    request: Serve
    handle: HandleT
    held: HeldMemory
    opened: float
    sent: float = 0.0
    submitted: bool = False

    @property
    def room(self) -> RoomId:
        """The room of the request."""
        return RoomId(self.request.room)

    @property
    def ended(self) -> float:
        """When the room ended, in monotonic seconds."""
        return self.opened + self.handle.metric().total


class Serving(ABC, Generic[HandleT]):
    """Serves rooms until told to stop. The main thread takes commands, one starts rooms, one sees them end.

    The lock guards ``_jobs`` and ``_dropped``.
    """

    def __init__(self, settings: WorkerSettings, memory: WorkerMemory, router: Router) -> None:
        self.settings = settings
        self.memory = memory
        self._router = router
        self._jobs: dict[RoomId, Job[HandleT]] = {}
        self._dropped: set[int] = set()
        self._lock = threading.Lock()
        self._waiting: queue.SimpleQueue[Serve | None] = queue.SimpleQueue()
        self._served: set[int] = set()
        self._stopping = threading.Event()
        self._threads = (
            threading.Thread(target=self._start_all, name="pdcore-demo-starts"),
            threading.Thread(target=self._watch, name="pdcore-demo-rooms"),
        )

    @abstractmethod
    def open(self, request: Serve, deadline: Deadline) -> HandleT:
        """Create the sender or receiver of a request."""

    @abstractmethod
    def submit(self, job: Job[HandleT]) -> None:
        """Do what the scheduler of this side does with a new request."""

    @abstractmethod
    def finished(self, deadline: Deadline) -> Sequence[RoomId]:
        """Return the rooms that ended, waiting for the first until the deadline."""

    @abstractmethod
    def succeeded(self, job: Job[HandleT]) -> Event:
        """Return what to report of a room that ended as SUCCESS."""

    def submitted(self) -> list[Job[HandleT]]:
        """Return the jobs that only wait for their end."""
        with self._lock:
            return [job for job in self._jobs.values() if job.submitted]

    def run(self) -> None:
        """Serve until the commands end."""
        for thread in self._threads:
            thread.start()
        try:
            while isinstance(command := self._router.next(), Serve | Drop):
                if isinstance(command, Serve):
                    self._waiting.put(command)
                else:
                    self._drop(command.room)
        finally:
            self._waiting.put(None)
            starter, watcher = self._threads
            starter.join()
            self._stopping.set()
            watcher.join()

    def _start_all(self) -> None:
        while (request := self._waiting.get()) is not None:
            self._start(request)

    def _start(self, request: Serve) -> None:
        deadline = Deadline.after(self.settings.deadline)
        if request.room in self._served:
            self._refuse(request, "this worker has served the room before; use a new room")
            return
        self._served.add(request.room)
        held = self.memory.take(request.tokens, deadline)
        if held is None:
            self._refuse(request, f"no free pages and slots in {self.settings.deadline:g} s")
            return
        job = self._opened(request, held, deadline)
        if job is None:
            self.memory.give_back(held)
            self._refuse(request, "another rank had failed it before it was started")
            return
        try:
            self.submit(job)
        except PDCoreError as error:
            reason = KVTransferError(FailureCode.ABORTED, error.happened, error.there_is, error.to_do)
            job.handle.give_up(reason)
        job.submitted = True

    def _opened(self, request: Serve, held: HeldMemory, deadline: Deadline) -> Job[HandleT] | None:
        """Return the job of a new room, or None if it was dropped meanwhile."""
        with self._lock:
            if request.room in self._dropped:
                return None
            opened = time.monotonic()
            job = Job(request, self.open(request, deadline), held, opened)
            self._jobs[job.room] = job
            return job

    def _drop(self, room: int) -> None:
        with self._lock:
            self._dropped.add(room)
            job = self._jobs.get(RoomId(room))
        if job is not None:
            job.handle.abort()

    def _refuse(self, request: Serve, reason: str) -> None:
        self._router.tell(RoomFailed(request.room, FailureCode.ABORTED.value, reason))

    def _watch(self) -> None:
        held: list[Job[HandleT]] = []
        while not self._stopping.is_set():
            rooms = self.finished(Deadline.after(WAKE_SECONDS))
            with self._lock:
                # One that was not safe as it ended comes twice.
                ended = [job for room in rooms if (job := self._jobs.pop(room, None)) is not None]
            for job in ended:
                self._router.tell(self._result(job))
            held = [job for job in (*held, *ended) if not self._released(job)]

    def _result(self, job: Job[HandleT]) -> Event:
        error = job.handle.failure()
        if error is None:
            return self.succeeded(job)
        return RoomFailed(job.room, error.code.value, brief(error))

    def _released(self, job: Job[HandleT]) -> bool:
        """Give the pages back if no byte can land in them any more and nobody fills them."""
        if not (job.submitted and job.handle.release_safe()):
            return False
        job.handle.clear()
        self.memory.give_back(job.held)
        return True


def configuration(settings: WorkerSettings) -> Config:
    """Return the manager configuration that the settings ask for."""
    bound, default = settings.deadline, Timeouts()
    model = TransferModel(settings.transfer_model) if settings.transfer_model else None
    return Config(
        backend=settings.backend,
        backend_options=settings.options,
        # Not among the settings: a secret is read where it is kept.
        auth_key=load_config(plugin_prefixes=discover().names).config.auth_key,
        transfer=TransferConfig(model=model, aux=settings.aux, staging=settings.staging),
        timeouts=attrs.evolve(
            default,
            request=bound,
            pairing=min(default.pairing, bound),
            bootstrap=min(default.bootstrap, bound),
        ),
    )


def chosen_backend(settings: WorkerSettings) -> Backend:
    """Select the backend that the settings name."""
    options = {name: Text(value) for name, value in settings.options.items()}
    origins = {f"backend_options.{name}": Origin(OriginKind.COMMAND_LINE) for name in options}
    return select(settings.backend, options, origins=origins)


def ready(backend: Backend, engine: TransferEngine, bootstrap: str = "") -> Ready:
    """Return the event that says that this worker can serve."""
    effective = engine.effective_transport
    transport = f"{effective.name} ({effective.certainty.value})"
    return Ready(os.getpid(), f"{backend.name} ({backend.distribution})", transport, bootstrap)


def worker_main(body: Callable[[WorkerSettings, Backend, Router], int]) -> int:
    """Be a worker process: select the backend, run ``body``, report how it ended.

    ``body`` returns how many control messages it sent.
    """

    def work(settings: WorkerSettings, router: Router) -> None:
        messages = body(settings, chosen_backend(settings), router)
        router.tell(Stopped(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, messages))

    return run_child(WorkerSettings, decode_command, work)
