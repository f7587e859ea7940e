"""A worker that is started again whenever it has ended: the process of now, and what it was asked."""

from __future__ import annotations

import time
from collections.abc import Mapping

import attrs
from msgspec.structs import replace

from pdcore.children import Child, Fatal, Gone
from pdcore.model import Deadline, Role
from pdcore.testing.chaos import messages as m
from pdcore.testing.chaos.report import ChaosReport

__all__ = ["RestartedWorker"]


@attrs.define
class _Open:
    began: float
    paused: float


class RestartedWorker:
    """The worker number ``number`` of a side. A context manager that leaves no process behind.

    One that ended comes back as a new process behind the same ports.
    """

    def __init__(
        self,
        role: Role,
        number: int,
        backend: str,
        options: Mapping[str, str],
        seed: int,
        deadline: float,
        report: ChaosReport,
        *,
        packed: bool = False,
    ) -> None:
        self.role = role
        self.name = f"{role.value} {number}"
        self.child: Child[m.Command, m.Event] | None = None
        self.open: dict[int, _Open] = {}
        self.ready = False
        self.transport = ""
        self.fatal = ""
        self._start = m.ChaosWorkerSettings(role.value, backend, dict(options), seed, deadline, packed)
        self._report = report
        self._paused = 0.0
        self._resume_at: float | None = None
        self._stopped_at = 0.0
        self._stopping = False
        self._killed = False
        self._over = False

    def __enter__(self) -> RestartedWorker:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.child is not None:
            self.child.kill()

    @property
    def alive(self) -> bool:
        """Whether a process is there."""
        return self.child is not None

    @property
    def bootstrap(self) -> str:
        """The address of a prefill worker's bootstrap service."""
        return f"127.0.0.1:{self._start.bootstrap_port}"

    def start(self) -> None:
        """Start a process."""
        self.child = Child(
            f"the {self.name} worker", "pdcore.testing.chaos.worker", self._start, m.decode_event
        )
        self._stopping = self._killed = False

    def await_ready(self, deadline: Deadline) -> None:
        """Wait until the process serves.

        Raises:
            ChildError: it did not start.
        """
        assert self.child is not None
        self.take(self.child.expect(m.WorkerServes, deadline, "did not start"))

    def tell(self, command: m.Command) -> None:
        """Tell the process a command, if there is one."""
        if self.child is not None:
            self.child.tell(command)

    def begin(self, room: int, pages: int, bootstrap: str) -> None:
        """Have the worker serve its side of a request."""
        self.open[room] = _Open(time.monotonic(), self._paused)
        self.tell(m.BeginRoom(room, pages, bootstrap))

    def kill(self) -> None:
        """End the process as a crash would; the next one starts when its end was seen."""
        assert self.child is not None
        self.ready, self._killed = False, True
        self.child.crash()

    def pause(self, seconds: float) -> None:
        """Suspend the process for a while."""
        assert self.child is not None
        if self._resume_at is None:
            self._stopped_at = time.monotonic()
            self._resume_at = self._stopped_at + seconds
            self.child.pause()

    def resume(self) -> None:
        """Let a suspended process go on."""
        if self._resume_at is not None:
            self._paused += time.monotonic() - self._stopped_at
            self._resume_at = None
            if self.child is not None:
                self.child.resume()

    def stop(self) -> None:
        """Have the process close in order."""
        self.resume()
        self.ready, self._stopping = False, True
        if self.child is not None:
            self.child.hang_up()

    def finish(self) -> None:
        """Have the process close in order, and let none follow."""
        self._over = True
        self.stop()

    def step(self, grace: float) -> None:
        """Resume what was paused long enough, and report rooms that ended too late or never."""
        now = time.monotonic()
        if self._resume_at is not None and now >= self._resume_at:
            self.resume()
        paused = self._paused + (now - self._stopped_at if self._resume_at is not None else 0.0)
        limit = self._start.deadline + grace
        for room, opened in list(self.open.items()):
            if now - opened.began - (paused - opened.paused) > limit:
                del self.open[room]
                self._report.hung_rooms.append(f"room {room} on {self.name} had not ended after {limit:g} s")

    def take(self, event: m.Event | Gone) -> None:
        """Take what the process says."""
        report = self._report
        match event:
            case m.WorkerServes():
                self.ready, self.transport = True, event.transport
                self._start = replace(
                    self._start, control_port=event.control_port, bootstrap_port=event.bootstrap_port
                )
            case m.RoomOver():
                self._ended(event)
            case m.PagesTouched():
                report.wrong_bytes.append(f"free pages {event.pages} of {self.name} were written to")
            case m.WorkerClosed():
                self._closed(event)
            case Fatal():
                self.fatal = event.error
            case Gone():
                self._gone(event)

    def _ended(self, event: m.RoomOver) -> None:
        report = self._report
        if self.open.pop(event.room, None) is None:
            report.wrong_bytes.append(f"room {event.room} on {self.name} ended twice")
        if event.code:
            report.reasons[f"{event.code} on {self.role.value}"] += 1
        elif self.role is Role.DECODE:
            report.verified += not event.wrong
        if event.wrong:
            report.wrong_bytes.append(f"room {event.room} on {self.name}: {event.wrong}")

    def _closed(self, event: m.WorkerClosed) -> None:
        report = self._report
        if event.pages:
            report.leaked_pages.append(f"{event.pages} pages of {self.name} {event.error}")
        left = [*event.threads, *event.sockets]
        if left:
            report.leaked_threads_and_sockets.append(f"{self.name}: {', '.join(left)}")
        if event.error:
            report.reasons["unproven at close"] += 1

    def _gone(self, event: Gone) -> None:
        assert self.child is not None
        self.child.kill()
        self.child, self.ready, self._resume_at = None, False, None
        if not (self._killed or self._stopping or self.fatal):
            self._report.died.append(f"{self.name}: {event.how}")
        self._report.reasons[f"{self.role.value} was killed or closed"] += len(self.open)
        self.open.clear()
        if self.fatal and self._start.bootstrap_port:
            # Somebody else has taken the ports meanwhile.
            self.fatal = ""
            self._start = replace(self._start, control_port=0, bootstrap_port=0)
        if not (self._over or self.fatal):
            self.start()
