"""What came out of a run of the suite, and whether that is conformance. Only values."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from enum import Enum

import attrs

__all__ = ["ConformanceReport", "Ending", "Outcome", "TestName", "groups_of"]

USAGE = 2


class Ending(Enum):
    """How one test ended. A test that was skipped proved nothing; one that CRASHED took its process along."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CRASHED = "crashed"
    HUNG = "hung"


@attrs.frozen
class TestName:
    """A test and the group that it belongs to."""

    __test__ = False

    group: str
    test: str


@attrs.frozen
class Outcome:
    """How one test ended, in how many seconds; ``reason`` is empty if it passed."""

    group: str
    test: str
    ending: Ending
    reason: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it passed."""
        return self.ending is Ending.PASSED


@attrs.frozen
class ConformanceReport:
    """What ran of what was to run.

    ``suite`` is the number of tests that there are, ``planned`` those of them that the expression chose.
    ``stopped`` says why not all of those ran, or what was wrong with the run itself; ``signal`` is the
    number of the signal that interrupted it, else 0; ``misused`` tells that nothing could run.
    """

    backend: str
    expression: str = ""
    suite: int = 0
    planned: tuple[TestName, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    stopped: str = ""
    signal: int = 0
    misused: bool = False

    @property
    def passed(self) -> int:
        """How many tests passed."""
        return sum(outcome.passed for outcome in self.outcomes)

    @property
    def not_run(self) -> tuple[TestName, ...]:
        """The tests that were to run and did not end."""
        ran = {outcome.test for outcome in self.outcomes}
        return tuple(name for name in self.planned if name.test not in ran)

    @property
    def sound(self) -> bool:
        """Whether all that was chosen ran and passed."""
        return bool(self.planned) and not self.stopped and self.passed == len(self.planned)

    @property
    def conforms(self) -> bool:
        """Whether all tests that there are ran and passed: nothing less is conformance."""
        return self.sound and len(self.planned) == self.suite

    @property
    def exit_status(self) -> int:
        """0 all that was chosen passed, 1 not, 2 wrong usage, 128 + the signal that interrupted."""
        return 128 + self.signal if self.signal else USAGE if self.misused else int(not self.sound)

    @property
    def verdict(self) -> str:
        """One word: conforms, selection, fails, stopped, interrupted or misused."""
        if self.signal:
            return "interrupted"
        if self.misused:
            return "misused"
        if self.stopped:
            return "stopped"
        return "conforms" if self.conforms else "selection" if self.sound else "fails"

    @property
    def summary(self) -> str:
        """One sentence."""
        ran, chosen = len(self.outcomes), len(self.planned)
        counts = f"{ran} of {chosen} tests ran, {self.passed} passed"
        match self.verdict:
            case "conforms":
                return f"{self.backend} conforms: {self.passed} of {chosen} tests passed"
            case "selection":
                chose = f"{chosen} of {self.suite} tests were chosen, and passed"
                return f"{self.backend}: {chose}; conformance takes all of them"
            case "fails":
                return f"{self.backend} does not conform: {self.passed} of {chosen} tests passed"
            case "interrupted":
                by = signal.Signals(self.signal).name
                return f"{self.backend}: interrupted by {by}: {counts}; this is not conformance"
            case _:
                return f"{self.backend} does not conform: {counts}; {self.stopped}"


def groups_of(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return the outcomes by group, in order."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.group, []).append(outcome)
    return groups
