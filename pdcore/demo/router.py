"""The router of the demo: keeps a number of requests in flight and collects what both sides say."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence

import attrs

from pdcore.demo.child import Gone, speaking
from pdcore.demo.messages import Event, Failed, Fatal, Ready, Received, Sent, Stopped, WorkerSettings
from pdcore.demo.report import Failure, Report, RequestReport
from pdcore.demo.worker import Worker
from pdcore.demo.workload import Request
from pdcore.errors import PDCoreError
from pdcore.model import Deadline, Role

__all__ = ["WorkerError", "run_demo"]

START_SECONDS = 90.0
STOP_SECONDS = 30.0
GRACE_SECONDS = 30.0
"""How long after its deadline a request's answer may come: the far side still compares the bytes."""

Progress = Callable[[int], None]
"""Is told how many requests have ended."""


class WorkerError(PDCoreError):
    """A worker process did not start, or said something that it should not."""


@attrs.define
class _Pending:
    request: Request
    deadline: Deadline
    sent: Sent | None = None
    received: Received | None = None
    failures: list[Failure] = attrs.field(factory=list)

    def answered(self, role: Role) -> bool:
        good = self.sent if role is Role.PREFILL else self.received
        return good is not None or any(f.side == role.value for f in self.failures)

    @property
    def over(self) -> bool:
        return all(map(self.answered, Role))


class _Run:
    """One run: the requests that wait, are in flight, and have ended."""

    def __init__(
        self, workers: dict[Role, Worker], bootstrap: str, deadline: float, requests: Sequence[Request]
    ) -> None:
        self._workers = workers
        self._bootstrap = bootstrap
        self._deadline = deadline
        self._waiting = list(reversed(requests))
        self._flying: dict[int, _Pending] = {}
        self.arrived: list[RequestReport] = []
        self.failures: list[Failure] = []
        self.ended = 0

    def drive(self, concurrency: int, progress: Progress) -> None:
        """Serve all requests; after a worker's death only those in flight are waited for."""
        while self._flying or self._waiting:
            while self._waiting and len(self._flying) < concurrency and not self._dead():
                self._dispatch(self._waiting.pop())
            if not self._flying:
                break
            oldest = next(iter(self._flying.values()))
            for worker in speaking(list(self._workers.values()), oldest.deadline):
                for event in worker.drain():
                    self._take(worker.role, event)
            self._settle()
            progress(self.ended)
        for request in reversed(self._waiting):
            self.failures.append(Failure(request.room, "router", "", "never started: a worker had died"))

    def _dead(self) -> list[Role]:
        return [role for role, worker in self._workers.items() if worker.gone]

    def _dispatch(self, request: Request) -> None:
        self._flying[request.room] = _Pending(request, Deadline.after(self._deadline + GRACE_SECONDS))
        self._workers[Role.DECODE].serve(request.room, request.tokens, self._bootstrap)
        self._workers[Role.PREFILL].serve(request.room, request.tokens)

    def _take(self, role: Role, event: Event | Gone) -> None:
        if isinstance(event, Gone):
            for room, pending in self._flying.items():
                if not pending.answered(role):
                    reason = f"the {role.value} worker is gone: {event.how}"
                    pending.failures.append(Failure(room, role.value, "", reason))
        elif isinstance(event, Fatal):
            raise WorkerError(f"the {role.value} worker cannot go on", event.error, "look at what it logged")
        elif isinstance(event, Failed | Sent | Received) and event.room in self._flying:
            pending = self._flying[event.room]
            if isinstance(event, Failed):
                pending.failures.append(Failure(event.room, role.value, event.code, event.error))
            elif isinstance(event, Sent):
                pending.sent = event
            else:
                pending.received = event

    def _settle(self) -> None:
        """Move the requests that have ended out of flight."""
        for room, pending in list(self._flying.items()):
            late = pending.deadline.expired
            if not (pending.over or late):
                continue
            del self._flying[room]
            self.ended += 1
            if pending.sent and pending.received:
                self.arrived.append(_arrived(pending.request, pending.sent, pending.received))
            elif late and not pending.failures:
                waited = self._deadline + GRACE_SECONDS
                self.failures.append(Failure(room, "router", "", f"no answer within {waited:g} s"))
            else:
                self.failures += pending.failures


def _arrived(request: Request, sent: Sent, received: Received) -> RequestReport:
    return RequestReport(
        room=request.room,
        tokens=request.tokens,
        pages=received.pages,
        nbytes=received.nbytes,
        aux_rows=received.aux_rows,
        latency=received.ended - sent.first_send,
        moving=(sent.moving_from, sent.ended),
        digest=received.digest,
        expected_digest=received.expected_digest,
        mismatch=received.mismatch,
    )


def run_demo(
    settings: WorkerSettings, requests: Sequence[Request], concurrency: int, progress: Progress
) -> Report:
    """Start a prefill and a decode process, serve the requests, stop both, and report.

    Raises:
        WorkerError: a worker could not start; the message is the worker's own.
    """
    with Worker(Role.PREFILL, settings) as prefill, Worker(Role.DECODE, settings) as decode:
        start = Deadline.after(START_SECONDS)
        ready = _ready(prefill, start)
        _ready(decode, start)
        began = time.monotonic()
        workers = {Role.PREFILL: prefill, Role.DECODE: decode}
        run = _Run(workers, ready.bootstrap, settings.deadline, requests)
        run.drive(concurrency, progress)
        wall = time.monotonic() - began
        stop = Deadline.after(STOP_SECONDS)
        last = [event for worker in (decode, prefill) for event in worker.stop(stop)]
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Report(
        backend=ready.backend,
        transport=ready.transport,
        model=settings.model,
        asked=len(requests),
        wall=wall,
        requests=tuple(sorted(run.arrived, key=lambda r: r.room)),
        failures=tuple(run.failures),
        peak_rss=(own, *(event.peak_rss for event in last if isinstance(event, Stopped))),
    )


def _ready(worker: Worker, deadline: Deadline) -> Ready:
    event = worker.read(deadline)
    if isinstance(event, Ready):
        return event
    said = event.error if isinstance(event, Fatal) else event.how if isinstance(event, Gone) else repr(event)
    raise WorkerError(
        f"the {worker.role.value} worker did not start",
        said if event is not None else f"no answer within {START_SECONDS:g} s",
        "look at what it logged; `pdcore doctor` says what a backend needs",
    )
