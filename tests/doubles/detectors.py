"""The fixture that installs the double of MORI-IO, and fails a test in which one of its detectors fired."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from doubles.mori.findings import Finding, Kind

FOLDER = Path(__file__).parent
_modules: dict[str, ModuleType] = {}
"""The double's modules between tests, when ``import mori`` must fail again."""


class MoriDouble:
    """The installed package ``mori``, its faults, and the finding that a test expects."""

    def __init__(self) -> None:
        self.mori = importlib.import_module("mori")
        for name in ("cpp", "io", "faults"):
            importlib.import_module(f"mori.{name}")
        self.faults = self.mori.faults
        self.findings: list[Finding] = importlib.import_module("mori.findings").findings
        self._expected: list[Kind] = []

    def expect(self, kind: Kind) -> None:
        """Let the test pass only if exactly this one finding is made."""
        self._expected = [kind]

    def settle(self) -> None:
        """Look for what is still in flight, and compare the findings with the expected one."""
        gc.collect()
        importlib.import_module("mori.flights").check_end_of_test()
        self.faults.reset()
        found = [*self.findings]
        self.findings.clear()
        if [finding.kind for finding in found] != self._expected:
            listed = "\n".join(f"  {finding.kind}: {finding.text}" for finding in found) or "  nothing"
            raise AssertionError(f"expected {self._expected} of the MORI double, found\n{listed}")


@contextmanager
def installed_double() -> Iterator[MoriDouble]:
    """Make ``import mori`` find the double within the block, and settle at its end."""
    assert "mori" not in sys.modules, "the real mori is loaded in this process"
    sys.path.insert(0, str(FOLDER))
    sys.modules.update(_modules)
    try:
        double = MoriDouble()
        yield double
        double.settle()
    finally:
        sys.path.remove(str(FOLDER))
        for name in [n for n in sys.modules if n.split(".")[0] == "mori"]:
            _modules[name] = sys.modules.pop(name)


@pytest.fixture
def mori_double() -> Iterator[MoriDouble]:
    with installed_double() as double:
        yield double
