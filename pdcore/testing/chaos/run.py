"""The chaos run itself: requests between random workers, and what befalls the workers meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import attrs
import numpy as np

from pdcore.children import heard
from pdcore.model import Deadline, Role
from pdcore.testing.chaos import messages as m
from pdcore.testing.chaos.report import ChaosReport
from pdcore.testing.chaos.restarted import RestartedWorker

__all__ = ["ChaosSettings", "run_chaos"]

STEP = 0.02
START = 90.0
GRACE = 20.0
"""Seconds after its deadline by which a room must have ended, on a busy machine, beside all pauses."""

RELEASE = 60.0
LONGEST_STOP = 4.0
MOST_PAGES = 16


@attrs.frozen
class ChaosSettings:
    """``seconds`` of requests; ``pause`` is the mean time between two disturbances, in seconds.

    ``packed``: all bytes go through slots.
    """

    seconds: float
    seed: int
    backend: str = "local"
    options: Mapping[str, str] = attrs.field(factory=dict)
    workers: int = 3
    in_flight: int = 24
    pause: float = 1.0
    deadline: float = 8.0
    packed: bool = False


def run_chaos(settings: ChaosSettings, tell: Callable[[ChaosReport], None] = lambda _: None) -> ChaosReport:
    """Run, and return what was found; ``tell`` is called now and then.

    Raises:
        ChildError: a worker did not start.
    """
    with ExitStack() as stack:
        run = _ChaosRun(settings, stack)
        run.start()
        run.flow(tell)
        run.settle()
        run.stop()
    return run.report


class _ChaosRun:
    def __init__(self, settings: ChaosSettings, stack: ExitStack) -> None:
        self._settings = settings
        self._random = np.random.default_rng(settings.seed)
        self.report = ChaosReport(settings.backend)
        self._workers = [
            stack.enter_context(
                RestartedWorker(
                    role,
                    n,
                    settings.backend,
                    settings.options,
                    settings.seed,
                    settings.deadline,
                    self.report,
                    packed=settings.packed,
                )
            )
            for role in Role
            for n in range(settings.workers)
        ]
        self._next_room = 0
        self._disturb_at = 0.0

    def start(self) -> None:
        """Start all workers and wait until they serve."""
        deadline = Deadline.after(START)
        for worker in self._workers:
            worker.start()
        for worker in self._workers:
            worker.await_ready(deadline)
        self.report.transport = self._workers[0].transport

    def flow(self, tell: Callable[[ChaosReport], None]) -> None:
        """Keep requests in flight and disturb, until the time is over."""
        began = time.monotonic()
        end = Deadline.after(self._settings.seconds)
        while not end.expired:
            while len(self._open_rooms()) < self._settings.in_flight and self._dispatch():
                pass
            self._hear()
            self._disturb()
            self.report.seconds = time.monotonic() - began
            tell(self.report)

    def settle(self) -> None:
        """Let all go on; every room ends, and every page that can be proven safe is released."""
        for worker in self._workers:
            worker.resume()
        end = Deadline.after(self._settings.deadline + START)
        while (self._open_rooms() or not all(s.ready for s in self._workers)) and not end.expired:
            self._hear()
        self.report.hung_rooms += [
            f"room {room} on {s.name} had not ended in the end" for s in self._workers for room in s.open
        ]

    def stop(self) -> None:
        """Close all workers in order, decode first; each tells what is left of it."""
        for role in (Role.DECODE, Role.PREFILL):
            mine = [s for s in self._workers if s.role is role]
            for worker in mine:
                worker.finish()
            end = Deadline.after(RELEASE)
            while any(s.alive for s in mine) and not end.expired:
                self._hear()
            for worker in mine:
                if worker.alive:
                    self.report.hung_rooms.append(f"{worker.name} did not close within {RELEASE:g} s")

    def _open_rooms(self) -> set[int]:
        return {room for worker in self._workers for room in worker.open}

    def _dispatch(self) -> bool:
        """Start a request on random workers that serve; False if there are none."""
        sides = []
        for role in Role:
            ready = [s for s in self._workers if s.role is role and s.ready]
            if not ready:
                return False
            sides.append(ready[int(self._random.integers(len(ready)))])
        prefill, decode = sides
        self._next_room += 1
        self.report.rooms += 1
        pages = int(self._random.integers(1, MOST_PAGES + 1))
        steps = [(prefill, ""), (decode, prefill.bootstrap)]
        for worker, bootstrap in steps if self._random.integers(2) else steps[::-1]:
            worker.begin(self._next_room, pages, bootstrap)
        return True

    def _hear(self) -> None:
        children = [s.child for s in self._workers if s.child is not None]
        by_child = {id(s.child): s for s in self._workers}
        for child in heard(children, Deadline.after(STEP)):
            for event in child.drain():
                by_child[id(child)].take(event)
        for worker in self._workers:
            worker.step(GRACE)

    def _disturb(self) -> None:
        now = time.monotonic()
        if now < self._disturb_at:
            return
        self._disturb_at = now + float(self._random.exponential(self._settings.pause))
        worker = self._workers[int(self._random.integers(len(self._workers)))]
        what = str(self._random.choice(["kill", "pause", "restart", "abort"], p=[0.3, 0.35, 0.1, 0.25]))
        seconds = float(self._random.random() * LONGEST_STOP)
        if not worker.ready:
            return
        self.report.disturbances[what] += 1
        match what:
            case "kill":
                worker.kill()
            case "pause":
                worker.pause(seconds)
            case "restart":
                worker.stop()
            case _:
                for room in sorted(worker.open)[:4]:
                    worker.tell(m.AbortRoom(room))
