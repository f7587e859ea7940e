"""Runs the suite for one target in processes of its own, and keeps what came out of every test.

A process that an engine crashes or blocks is replaced by another, which runs the tests that are left.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import attrs

from pdcore.testing.outcomes import Ending, Outcome, Report, TestName
from pdcore.testing.suite_process import SuiteProcess, Wakeup
from pdcore.testing.target import Target
from pdcore.testing.told import Begun, Collected, Ended, Errand, Over, Told

__all__ = ["RunLimits", "run_suite"]

BETWEEN = 60.0
"""Seconds that a process may be silent while no test runs, as when it starts."""

STATUS_USAGE = 4
"""What pytest returns for an expression that it cannot read."""


@attrs.frozen
class RunLimits:
    """``test``: seconds that one test may take. ``hangs``: after so many that hung the run stops."""

    test: float
    hangs: int = 3


class _Run:
    """The state of one run. Only the thread that calls :func:`run_suite` touches it."""

    def __init__(
        self, target: Target, expression: str, limits: RunLimits, watch: Callable[[Outcome, int], None]
    ) -> None:
        self._target = target
        self._limits = limits
        self._watch = watch
        self._wakeup = Wakeup()
        self._running = ""
        self._over: Over | None = None
        self._hangs = 0
        self.report = Report(target.name, expression)

    def run(self) -> Report:
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
        done = [outcome.test for outcome in self.report.outcomes]
        target = self._target
        errand = Errand(target.name, dict(target.options), target.patience, self.report.expression, done)
        self._running, self._over = "", None
        with SuiteProcess(errand, self._wakeup) as process:
            replaced = self._watch_process(process)
        if not replaced and not self.report.stopped:
            self._judge_end(process)

    def _watch_process(self, process: SuiteProcess) -> bool:
        """Follow a process to its end; return whether it is to be replaced whatever its end was."""
        while True:
            limit = self._limits.test if self._running else max(self._limits.test, BETWEEN)
            told = process.next(limit)
            if self._wakeup.signal:
                self._interrupt()
                return False
            if told is None:
                break
            if isinstance(told, Ended) and told.stuck:
                self._hear(told, process.seconds)
                return True  # a thread of that process is stuck in the engine: the next test gets another
            self._hear(told, process.seconds)
            if self.report.stopped:
                return False
        if process.ended:
            return False
        if not self._running:
            self._stop(f"the process of the tests was silent for {limit:g} s, and was killed")
            return False
        self._end(Ending.HUNG, _hung(self._limits.test), process.seconds)
        return True

    def _hear(self, told: Told, seconds: float) -> None:
        match told:
            case Collected():
                if not self.report.planned:
                    planned = tuple(TestName(*names) for names in told.planned)
                    self.report = attrs.evolve(self.report, suite=told.suite, planned=planned)
            case Begun():
                self._running = told.test
            case Ended():
                self._end(Ending.HUNG if told.stuck else Ending(told.ending), told.reason, seconds)
            case Over():
                self._over = told

    def _end(self, ending: Ending, reason: str, seconds: float) -> None:
        test, self._running = self._running, ""
        group = next(name.group for name in self.report.planned if name.test == test)
        outcome = Outcome(group, test, ending, reason, seconds)
        self.report = attrs.evolve(self.report, outcomes=(*self.report.outcomes, outcome))
        self._watch(outcome, len(self.report.planned))
        # A call that ends with an error at its deadline has cost its user as much as one that never ends.
        if ending is Ending.HUNG or (not outcome.passed and seconds >= self._target.patience):
            self._hangs += 1
            if self._hangs == self._limits.hangs and self.report.not_run:
                self._stop(f"stopped after {self._hangs} tests that hung (--hangs sets how many)")

    def _judge_end(self, process: SuiteProcess) -> None:
        """Say what it means that a process has ended by itself."""
        over = self._over
        if self._running:
            self._end(Ending.CRASHED, _crashed((over.said if over else "") or process.ended), process.seconds)
        elif not self.report.planned:
            self._stop(*_nothing_ran(self.report.expression, over, process.ended))
        elif over is not None and over.said:
            self._stop(f"pytest failed: {over.said}")
        elif not self.report.not_run and not process.well:
            left = "something of the engine was still alive, or its library fails as it is unloaded"
            self._stop(f"after the last test the process {process.ended}: {left}")

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


def _nothing_ran(expression: str, over: Over | None, how: str) -> tuple[str, bool]:
    """Say why no test could run, and whether that is wrong usage."""
    if over is not None and expression and not over.said:
        cannot = "pytest cannot read" if over.status == STATUS_USAGE else "no test matches"
        return f"{cannot} {expression!r}", True
    why = over.said if over else f"the process of the tests {how}"
    return f"the suite could not be collected: {why}", False


@contextlib.contextmanager
def _woken_by_signals(wakeup: Wakeup) -> Iterator[None]:
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
) -> Report:
    """Run every test that matches pytest's ``-k`` expression, and report.

    ``watch`` is told each outcome as it comes, with the number of tests that run in all. SIGINT and SIGTERM
    end the run; no process is left.
    """
    return _Run(target, expression, limits, watch).run()
