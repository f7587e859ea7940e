"""The process that runs the tests: pytest in it tells what happens to whoever started it.

An engine that crashes or blocks this process leaves who watches it unharmed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from pdcore.children import Parent, run_child
from pdcore.testing.bounded import HungError
from pdcore.testing.rules import RuleBrokenError
from pdcore.testing.run.messages import BeganTest, Collected, EndedTest, Errand, SuiteOver
from pdcore.testing.run.outcomes import Ending
from pdcore.testing.target import Target

PR_SET_PDEATHSIG = 1


class _TellingPlugin:
    """The pytest plugin: provides the target, tells of every test."""

    def __init__(self, errand: Errand, watcher: Parent[None]) -> None:
        self._errand = errand
        self._watcher = watcher
        self._suite = 0
        self._ending, self._reason, self._stuck = Ending.PASSED, "", False
        self._said: list[str] = []

    def over(self, status: int) -> None:
        """Tell that pytest returned."""
        self._watcher.tell(SuiteOver(status, "\n".join(self._said)))

    @pytest.fixture
    def conform_target(self) -> Target:
        return Target(self._errand.backend, self._errand.options, self._errand.patience)

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        self._suite += 1
        item.extra_keyword_matches.add(_group(item))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._watcher.tell(Collected(self._suite, [(_group(item), item.name) for item in items]))
        items[:] = [item for item in items if item.name not in self._errand.done]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._said.append(str(report.longrepr))

    def pytest_internalerror(self, excrepr: object) -> None:
        self._said.append(str(excrepr))

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self._said.append(f"was ended by {excinfo.exconly()}, which something raised")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._ending, self._reason, self._stuck = Ending.PASSED, "", False
        self._watcher.tell(BeganTest(_name(nodeid)))

    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> None:
        error = call.excinfo.value if call.excinfo is not None else None
        while error is not None:
            self._stuck = self._stuck or isinstance(error, HungError)
            error = error.__cause__ or error.__context__

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed or self._ending is Ending.FAILED:
            return
        self._ending = Ending.FAILED if report.failed else Ending.SKIPPED
        crash = getattr(report.longrepr, "reprcrash", None)
        skipped = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        reason = crash.message if crash else skipped or str(report.longrepr)
        self._reason = reason.removeprefix(f"{RuleBrokenError.__module__}.{RuleBrokenError.__name__}: ")

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._watcher.tell(EndedTest(_name(nodeid), self._ending.value, self._reason, self._stuck))


def _group(item: pytest.Item) -> str:
    assert isinstance(item, pytest.Function)
    module: str = item.function.__module__
    return module.rpartition(".")[2]


def _name(nodeid: str) -> str:
    return nodeid.rpartition("::")[2]


def run(errand: Errand, watcher: Parent[None]) -> None:
    """Run the errand. Nothing of the caller's own pytest configuration or plugins is used."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # who asked has died already
    module = Path(__file__).with_name("suite.py")
    arguments = [str(module), "-c", os.devnull, f"--rootdir={module.parent}", "--noconftest"]
    arguments += ["-p", "no:terminal", "-p", "no:cacheprovider"]
    arguments += ["-k", errand.expression] if errand.expression else []
    tests = _TellingPlugin(errand, watcher)
    tests.over(int(pytest.main(arguments, plugins=[tests])))


if __name__ == "__main__":
    sys.exit(run_child(Errand, msgspec.json.Decoder(None).decode, run))
