"""Runs the suite for one target in processes of its own, and keeps what came out of every test.

A process that an engine crashes or blocks is replaced by another, which runs the tests that are left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

import attrs

from pdcore.children import Child, Fatal, Gone, heard
from pdcore.model import Deadline
from pdcore.testing.run.messages import BeganTest, Collected, EndedTest, Errand, SuiteOver, Told, decode_told
from pdcore.testing.run.outcomes import ConformanceReport, Ending, Outcome, TestName
from pdcore.testing.target import Target

__all__ = ["RunLimits", "run_suite"]

BETWEEN = 60.0
"""Seconds that a process may be silent while no test runs, as when it starts."""

LAST_WORDS = 10.0
"""Seconds that a process may take to end after its last words."""

STATUS_USAGE = 4
"""What pytest returns for an expression that it cannot read."""


@attrs.frozen
class RunLimits:
    """``test``: seconds that one test may take. ``hangs``: after so many that hung the run stops."""

    test: float
    hangs: int = 3


class _SignalPipe:
    """A pipe that wakes who polls it when a signal comes. ``signal`` is that signal, else 0."""

    def __init__(self) -> None:
        self.signal = 0
        self.fd, self._write = -1, -1

    def __enter__(self) -> _SignalPipe:
        self.fd, self._write = os.pipe()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)
        os.close(self._write)

    def heard(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        self.signal = number
        os.write(self._write, b"!")


class _SuiteRun:
    """The state of one run. Only the thread that calls :func:`run_suite` touches it.

    ``_began`` is when the process began, or the last test that was told of began or ended.
    """

    def __init__(
        self, target: Target, expression: str, limits: RunLimits, watch: Callable[[Outcome, int], None]
    ) -> None:
        self._target = target
        self._limits = limits
        self._watch = watch
        self._wakeup = _SignalPipe()
        self._running = ""
        self._began = 0.0
        self._over: SuiteOver | None = None
        self._hangs = 0
        self.report = ConformanceReport(target.name, expression)

    def run(self) -> ConformanceReport:
        """Run process after process until nothing is left or the run is stopped."""
        with self._wakeup, _woken_by_signals(self._wakeup):
            while not self.report.stopped:
                before = len(self.report.outcomes)
                self._run_process()
                if not self.report.not_run:
                    break
                if len(self.report.outcomes) == before:
                    self._stop("a process ended before it had run a test; see what it said above")
        return self.report

    def _run_process(self) -> None:
        """Follow a process until it has ended, a test in it hangs, or the run is stopped."""
        done = [outcome.test for outcome in self.report.outcomes]
        target = self._target
        errand = Errand(target.name, dict(target.options), target.patience, self.report.expression, done)
        self._running, self._over, self._began = "", None, time.monotonic()
        with suite_process(errand) as process:
            while not self.report.stopped:
                event = self._next(process)
                if self._wakeup.signal:
                    self._interrupt()
                elif event is None or isinstance(event, Gone):
                    self._judge(event)
                    break
                else:
                    self._hear(event)
                    if isinstance(event, EndedTest) and event.stuck:
                        break  # a thread of that process is in the engine: the next test gets another

    def _next(self, process: Child[NoReturn, Told]) -> Told | Gone | None:
        """Return what the process tells next; None after a signal, or when it was silent for too long."""
        limit = self._limits.test
        if not self._running:
            limit = LAST_WORDS if self._over else max(limit, BETWEEN)
        deadline = Deadline(self._began + limit)
        return process.read(deadline) if heard([process], deadline, self._wakeup.fd) else None

    def _hear(self, told: Told) -> None:
        match told:
            case Collected():
                if not self.report.planned:
                    planned = tuple(TestName(*names) for names in told.planned)
                    self.report = attrs.evolve(self.report, suite=told.suite, planned=planned)
            case BeganTest():
                self._running, self._began = told.test, time.monotonic()
            case EndedTest():
                self._end(Ending.HUNG if told.stuck else Ending(told.ending), told.reason)
            case SuiteOver():
                self._over, self._began = told, time.monotonic()
            case Fatal():
                self._over = SuiteOver(1, told.error)

    def _end(self, ending: Ending, reason: str) -> None:
        test, self._running, seconds = self._running, "", time.monotonic() - self._began
        self._began = time.monotonic()
        group = next(name.group for name in self.report.planned if name.test == test)
        outcome = Outcome(group, test, ending, reason, seconds)
        self.report = attrs.evolve(self.report, outcomes=(*self.report.outcomes, outcome))
        self._watch(outcome, len(self.report.planned))
        # A call that ends with an error at its deadline has cost its user as much as one that never ends.
        if ending is Ending.HUNG or (not outcome.passed and seconds >= self._target.patience):
            self._hangs += 1
            if self._hangs == self._limits.hangs and self.report.not_run:
                self._stop(f"stopped after {self._hangs} tests that hung (--hangs sets how many)")

    def _judge(self, end: Gone | None) -> None:
        """Say what it means that a process has ended by itself, or was silent for too long (None)."""
        over = self._over
        how = end.how if end else f"had not ended {LAST_WORDS:g} s later"
        if self._running and end is None:
            self._end(Ending.HUNG, _hung(self._limits.test))
        elif self._running:
            self._end(Ending.CRASHED, _crashed((over.said if over else "") or how))
        elif end is None and over is None:
            limit = max(self._limits.test, BETWEEN)
            self._stop(f"the process of the tests was silent for {limit:g} s, and was killed")
        elif not self.report.planned:
            self._stop(*_nothing_ran(self.report.expression, over, how))
        elif over is not None and over.said:
            self._stop(f"pytest failed: {over.said}")
        elif not self.report.not_run and not (end and end.status == 0):
            left = "something of the engine was still alive, or its library fails as it is unloaded"
            self._stop(f"after the last test the process {how}: {left}")

    def _interrupt(self) -> None:
        by = signal.Signals(self._wakeup.signal).name
        self.report = attrs.evolve(self.report, stopped=f"interrupted by {by}", signal=self._wakeup.signal)

    def _stop(self, why: str, misused: bool = False) -> None:
        self.report = attrs.evolve(self.report, stopped=why, misused=misused)


def _hung(seconds: float) -> str:
    return (
        "rule: every call of an engine ends by its deadline, or within seconds where it has none\n"
        "usual cause: a call into the engine's library that waits for the peer and holds the interpreter\n"
        f"the test had not ended after {seconds:g} s, and its process was killed"
    )


def _crashed(how: str) -> str:
    return (
        "rule: an engine never ends the process that it is part of\n"
        "usual cause: an address, length or handle that its library does not check; an exit or abort in it\n"
        f"the process of the test {how}"
    )


def _nothing_ran(expression: str, over: SuiteOver | None, how: str) -> tuple[str, bool]:
    """Say why no test could run, and whether that is wrong usage."""
    if over is not None and expression and not over.said:
        cannot = "pytest cannot read" if over.status == STATUS_USAGE else "no test matches"
        return f"{cannot} {expression!r}", True
    why = over.said if over else f"the process of the tests {how}"
    return f"the suite could not be collected: {why}", False


def suite_process(errand: Errand) -> Child[NoReturn, Told]:
    """Start a process that runs tests, in a session of its own: all that they start ends with it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # Without assertions every test would pass.
    kept.pop("PYTHONOPTIMIZE", None)
    return Child(
        "the process of the tests",
        "pdcore.testing.run.process",
        errand,
        decode_told,
        session=True,
        environment=kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )


@contextlib.contextmanager
def _woken_by_signals(wakeup: _SignalPipe) -> Iterator[None]:
    """Have SIGINT and SIGTERM end the run in good order (only the main thread may say so)."""
    before = {}
    try:
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, wakeup.heard)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_suite(
    target: Target, expression: str, limits: RunLimits, watch: Callable[[Outcome, int], None]
) -> ConformanceReport:
    """Run every test that matches pytest's ``-k`` expression, and report.

    ``watch`` is told each outcome as it comes, with the number of tests that run in all. SIGINT and SIGTERM
    end the run; no process is left.
    """
    return _SuiteRun(target, expression, limits, watch).run()
