"""The router of the demo: keeps a number of requests in flight and collects what all ranks say."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Sequence

import attrs

from pdcore.children import Fatal, Gone, heard
from pdcore.demo.content.expected import AUX_SCHEMA
from pdcore.demo.messages import Event, RoomFailed, RoomReceived, RoomSent, WorkerSettings
from pdcore.demo.planning.groups import Groups
from pdcore.demo.planning.workload import Prompt
from pdcore.demo.report import DemoReport, RequestFailure, RequestReport
from pdcore.demo.workers import Fleet, Worker, started
from pdcore.errors import FailureCode
from pdcore.model import Deadline

__all__ = ["Told", "run_demo"]

GRACE_SECONDS = 30.0
"""How long after its deadline a request's answer may come: the far side still compares the bytes."""

Told = Callable[[int], None]
"""Is told how many requests have ended."""


@attrs.define
class _Pending:
    """A request in flight; ``silent`` are the ranks that have not answered."""

    request: Prompt
    deadline: Deadline
    silent: list[Worker]
    sent: list[RoomSent] = attrs.field(factory=list)
    received: list[RoomReceived] = attrs.field(factory=list)
    failures: list[RequestFailure] = attrs.field(factory=list)

    def fail(self, worker: Worker, code: str, error: str) -> None:
        """Note a rank's failure. After the first, the others are told to give up; that they do is no news."""
        self.silent.remove(worker)
        if self.failures and code == FailureCode.ABORTED.value:
            return
        if not self.failures:
            for other in self.silent:
                other.drop(self.request.room)
        self.failures.append(RequestFailure(self.request.room, worker.title, code, error))


class _DemoRun:
    """One run: the requests that wait, are in flight, and have ended."""

    def __init__(self, fleet: Fleet, deadline: float, requests: Sequence[Prompt]) -> None:
        self._fleet = fleet
        self._deadline = deadline
        self._waiting = list(reversed(requests))
        self._flying: dict[int, _Pending] = {}
        self._hopeless = ""
        self.arrived: list[RequestReport] = []
        self.failures: list[RequestFailure] = []
        self.ended = 0

    def drive(self, concurrency: int, progress: Told) -> None:
        """Serve all requests; once no other can be served, only those in flight are waited for."""
        while self._flying or self._waiting:
            while self._waiting and len(self._flying) < concurrency and not self._hopeless:
                self._dispatch(self._waiting.pop())
            if not self._flying:
                break
            oldest = next(iter(self._flying.values()))
            for worker in heard(self._fleet.workers, oldest.deadline):
                for event in worker.drain():
                    self._take(worker, event)
            self._settle()
            progress(self.ended)
        for request in reversed(self._waiting):
            self.failures.append(
                RequestFailure(request.room, "router", "", f"never started: {self._hopeless}")
            )

    def _dispatch(self, request: Prompt) -> None:
        room = request.room
        chosen = self._fleet.serving(room)
        deadline = Deadline.after(self._deadline + GRACE_SECONDS)
        self._flying[room] = _Pending(request, deadline, chosen)
        for worker in chosen:
            worker.serve(room, request.tokens, self._fleet.ready.bootstrap, request.held)

    def _take(self, worker: Worker, event: Event | Gone) -> None:
        if isinstance(event, Gone):
            self._hopeless = "a worker had died"
            for pending in self._flying.values():
                if worker in pending.silent:
                    pending.fail(worker, "", f"the {worker.title} worker is gone: it {event.how}")
        elif isinstance(event, Fatal):
            raise worker.error("cannot go on", event)
        elif isinstance(event, RoomFailed | RoomSent | RoomReceived) and event.room in self._flying:
            self._answer(self._flying[event.room], worker, event)

    def _answer(self, pending: _Pending, worker: Worker, event: RoomFailed | RoomSent | RoomReceived) -> None:
        if worker not in pending.silent:
            return
        if isinstance(event, RoomFailed):
            pending.fail(worker, event.code, event.error)
            if event.code == FailureCode.INCOMPATIBLE.value:
                self._hopeless = "prefill and decode do not fit together"
            return
        pending.silent.remove(worker)
        if isinstance(event, RoomSent):
            pending.sent.append(event)
        else:
            pending.received.append(event)

    def _settle(self) -> None:
        """Move the requests that have ended out of flight."""
        for room, pending in list(self._flying.items()):
            late = pending.deadline.expired
            if pending.silent and not late:
                continue
            del self._flying[room]
            self.ended += 1
            if pending.failures:
                self.failures += pending.failures
            elif pending.silent:
                waited = self._deadline + GRACE_SECONDS
                self.failures.append(RequestFailure(room, "router", "", f"no answer within {waited:g} s"))
            else:
                self.arrived.append(_arrived(pending.request, pending.sent, pending.received))


def _arrived(request: Prompt, sent: Sequence[RoomSent], received: Sequence[RoomReceived]) -> RequestReport:
    nbytes, aux_rows = sum(r.nbytes for r in received), sum(r.aux_rows for r in received)
    moved = sum(s.nbytes for s in sent)
    wrong = [r.mismatch for r in received if r.mismatch]
    # Aux rows are among the bytes that the engine wrote, unless they went over TCP.
    if moved not in (nbytes, nbytes + aux_rows * AUX_SCHEMA.row_len):
        wrong.append(f"prefill sent {moved:,} bytes, decode needed {nbytes:,} and {aux_rows} aux rows")
    return RequestReport(
        room=request.room,
        tokens=request.tokens,
        pages=received[0].pages,
        held=request.held,
        nbytes=nbytes,
        writes=sum(s.entries for s in sent),
        aux_rows=aux_rows,
        latency=max(r.ended for r in received) - min(s.first_send for s in sent),
        moving=(min(s.moving_from for s in sent), max(s.ended for s in sent)),
        digest=_summed(r.digest for r in received),
        expected_digest=_summed(r.expected_digest for r in received),
        mismatch="; ".join(wrong),
    )


def _summed(digests: Iterable[str]) -> str:
    return f"{sum(int(digest, 16) for digest in digests) % 2**64:016x}"


def run_demo(
    settings: WorkerSettings,
    requests: Sequence[Prompt],
    concurrency: int,
    progress: Told,
    groups: Groups | None = None,
) -> DemoReport:
    """Start a process per rank, by default one on each side, serve the requests, stop all, and report.

    Raises:
        ChildError: a worker could not start; the message is the worker's own.
    """
    with started(settings, groups or Groups()) as fleet:
        began = time.monotonic()
        run = _DemoRun(fleet, settings.deadline, requests)
        run.drive(concurrency, progress)
        wall = time.monotonic() - began
        stopped = fleet.stop()
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return DemoReport(
        backend=fleet.ready.backend,
        transport=fleet.ready.transport,
        model=settings.model,
        groups=fleet.groups,
        asked=len(requests),
        wall=wall,
        requests=tuple(sorted(run.arrived, key=lambda r: r.room)),
        failures=tuple(run.failures),
        peak_rss=(own, *(event.peak_rss for event in stopped)),
        messages=sum(event.messages for event in stopped),
    )
