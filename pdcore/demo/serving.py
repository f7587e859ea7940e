"""What both kinds of worker processes share: start a room for each command, report how each ends."""

from __future__ import annotations

import os
import resource
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.config import Config, Timeouts, TransferConfig, TransferModel
from pdcore.demo.allocator import PageAllocator
from pdcore.demo.content import AUX_SCHEMA, Content
from pdcore.demo.line import ParentLine
from pdcore.demo.messages import (
    Command,
    Event,
    Failed,
    Fatal,
    Ready,
    Serve,
    Stopped,
    WorkerSettings,
    decode_command,
)
from pdcore.demo.models import MODELS
from pdcore.engine import TransferEngine
from pdcore.errors import FailureCode, KVTransferError, PDCoreError
from pdcore.handle import RoomHandle
from pdcore.metadata import MetadataBuffers
from pdcore.model import Deadline, Role, RoomId
from pdcore.pools import Pools
from pdcore.selection import Backend, select
from pdcore.settings import Origin, OriginKind
from pdcore.structuring import Text

__all__ = [
    "Job",
    "Memory",
    "RouterLine",
    "Serving",
    "chosen_backend",
    "configuration",
    "ready",
    "worker_main",
]

RouterLine: TypeAlias = ParentLine[Command]

WAKE_SECONDS = 0.2
ERROR_CHARACTERS = 900  # keeps an event below PIPE_BUF


HandleT = TypeVar("HandleT", bound=RoomHandle)


@attrs.define
class Job(Generic[HandleT]):
    """One request of this worker: its sender or receiver, and the pages and the aux slot it holds.

    ``opened`` and ``sent`` (the first time, by prefill) are monotonic seconds; ``submitted`` once the
    command thread is done with it.
    """

    request: Serve
    handle: HandleT
    pages: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
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

    @property
    def slot(self) -> int:
        """The aux slot."""
        return int(self.slots[0])


class Memory:
    """The pools, aux rows and allocators of one worker."""

    def __init__(self, settings: WorkerSettings, role: Role) -> None:
        layout = MODELS[settings.model].layout(settings.page_size, settings.num_pages)
        self.aux = MetadataBuffers(AUX_SCHEMA, settings.slots)
        self.pools = Pools.allocate(layout, aux=self.aux)
        self.content = Content(settings.seed, layout)
        order = 2 * (settings.seed % 2**62) + (role is Role.DECODE)  # the sides use different pages
        self.pages = PageAllocator(settings.num_pages, order)
        self.slots = PageAllocator(settings.slots, order)


class Serving(ABC, Generic[HandleT]):
    """Serves rooms until told to stop. The main thread starts them, a second one sees them end."""

    def __init__(self, settings: WorkerSettings, memory: Memory, line: RouterLine) -> None:
        self.settings = settings
        self.memory = memory
        self._line = line
        self._jobs: dict[RoomId, Job[HandleT]] = {}
        self._lock = threading.Lock()  # guards _jobs
        self._served: set[int] = set()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="pdcore-demo-rooms")

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
        self._watcher.start()
        try:
            while isinstance(command := self._line.next(), Serve):
                self._start(command)
        finally:
            self._stopping.set()
            self._watcher.join()

    def _start(self, request: Serve) -> None:
        deadline = Deadline.after(self.settings.deadline)
        if request.room in self._served:
            self._refuse(request, "this worker has served the room before; use a new room")
            return
        self._served.add(request.room)
        count = -(-request.tokens // self.settings.page_size)
        slots = self.memory.slots.take(1, deadline)
        pages = None if slots is None else self.memory.pages.take(count, deadline)
        if slots is None or pages is None:
            if slots is not None:
                self.memory.slots.give_back(slots)
            self._refuse(request, f"no {count} free pages and aux slot in {self.settings.deadline:g} s")
            return
        with self._lock:
            opened = time.monotonic()
            job = Job(request, self.open(request, deadline), pages, slots, opened)
            self._jobs[job.room] = job
        try:
            self.submit(job)
        except PDCoreError as error:
            reason = KVTransferError(FailureCode.ABORTED, error.happened, error.there_is, error.to_do)
            job.handle.give_up(reason)
        job.submitted = True

    def _refuse(self, request: Serve, reason: str) -> None:
        self._line.emit(Failed(request.room, FailureCode.ABORTED.value, reason))

    def _watch(self) -> None:
        held: list[Job[HandleT]] = []
        while not self._stopping.is_set():
            rooms = self.finished(Deadline.after(WAKE_SECONDS))
            with self._lock:
                ended = [self._jobs.pop(room) for room in rooms]
            for job in ended:
                self._line.emit(self._result(job))
            held = [job for job in (*held, *ended) if not self._released(job)]

    def _result(self, job: Job[HandleT]) -> Event:
        error = job.handle.failure()
        if error is None:
            return self.succeeded(job)
        return Failed(job.room, error.code.value, str(error)[:ERROR_CHARACTERS])

    def _released(self, job: Job[HandleT]) -> bool:
        """Give the pages back if no byte can land in them any more and nobody fills them."""
        if not (job.submitted and job.handle.release_safe()):
            return False
        job.handle.clear()
        self.memory.pages.give_back(job.pages)
        self.memory.slots.give_back(job.slots)
        return True


def configuration(settings: WorkerSettings) -> Config:
    """Return the manager configuration that the settings ask for."""
    bound, default = settings.deadline, Timeouts()
    return Config(
        backend=settings.backend,
        backend_options=settings.options,
        transfer=TransferConfig(model=TransferModel(settings.transfer_model), aux=settings.aux),
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


def worker_main(body: Callable[[WorkerSettings, Backend, RouterLine], None]) -> int:
    """Be a worker process: read the settings, select the backend, run ``body``, report how it ended."""
    line: RouterLine = ParentLine(decode_command)
    try:
        settings = line.next()
        if not isinstance(settings, WorkerSettings):
            return 2
        body(settings, chosen_backend(settings), line)
    except PDCoreError as error:
        line.emit(Fatal(str(error)))
        return 1
    line.emit(Stopped(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
    return 0
