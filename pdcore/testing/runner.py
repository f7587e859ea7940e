"""Runs the suite for one target with pytest, and keeps what came out of every test."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from pdcore.testing.target import Target

__all__ = ["Outcome", "run_suite"]


@attrs.frozen
class Outcome:
    """How one test ended; ``reason`` is empty if it passed."""

    group: str
    test: str
    passed: bool
    reason: str


class _Run:
    """The pytest plugin of one run: provides the target, collects the outcomes."""

    def __init__(self, target: Target, watch: Callable[[Outcome, int], None]) -> None:
        self._target = target
        self._watch = watch
        self._groups: dict[str, str] = {}
        self._failures: dict[str, str] = {}
        self.outcomes: list[Outcome] = []

    @pytest.fixture
    def conform_target(self) -> Target:
        return self._target

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        assert isinstance(item, pytest.Function)
        group = item.function.__module__.rpartition(".")[2]
        item.extra_keyword_matches.add(group)
        self._groups[item.nodeid] = group

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._groups = {item.nodeid: self._groups[item.nodeid] for item in session.items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self._failures:
            crash = getattr(report.longrepr, "reprcrash", None)
            self._failures[report.nodeid] = crash.message if crash else str(report.longrepr)
        if report.when == "teardown":
            reason = self._failures.get(report.nodeid, "")
            name = report.nodeid.rpartition("::")[2]
            outcome = Outcome(self._groups[report.nodeid], name, not reason, reason)
            self.outcomes.append(outcome)
            self._watch(outcome, len(self._groups))


def run_suite(target: Target, expression: str, watch: Callable[[Outcome, int], None]) -> list[Outcome]:
    """Return the outcome of every test that matches pytest's ``-k`` expression.

    ``watch`` is told each outcome as it comes, with the number of tests that run in all. Nothing
    of the caller's own pytest configuration is used.
    """
    module = Path(__file__).with_name("shipped.py")
    run = _Run(target, watch)
    arguments = [str(module), "-c", os.devnull, f"--rootdir={module.parent}", "--noconftest"]
    arguments += ["-p", "no:terminal", "-p", "no:cacheprovider", *(["-k", expression] if expression else [])]
    os.environ.pop("PYTEST_ADDOPTS", None)
    pytest.main(arguments, plugins=[run])
    return run.outcomes
