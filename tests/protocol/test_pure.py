"""The machine touches nothing: what its modules import, and what those import, are values."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pdcore

PACKAGE = Path(pdcore.__file__).parent
FORBIDDEN = {
    "asyncio", "concurrent", "ctypes", "logging", "multiprocessing", "os", "queue", "random", "sched",
    "select", "selectors", "signal", "socket", "ssl", "subprocess", "threading", "time", "zmq",
}  # fmt: skip
VALUES = {"errors", "model", "layout", "pairing", "plan", "wire", "checks"}
"""Packages of pdcore of which it takes messages, descriptions and index arrays."""


def imported(path: Path) -> set[str]:
    """Return all modules that a file imports at run time."""
    tree, found = ast.parse(path.read_text()), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


MODULES = sorted(PACKAGE.glob("protocol/*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_a_module_of_the_machine_imports_values_only(path: Path) -> None:
    for module in imported(path):
        first, _, rest = module.partition(".")
        assert first not in FORBIDDEN, module
        if first == "pdcore":
            assert rest.split(".")[0] in VALUES | {"protocol"}, module


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_a_module_of_the_machine_calls_nothing_that_waits_or_writes(path: Path) -> None:
    called = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not called & {"open", "print", "input", "exec", "eval", "__import__"}
