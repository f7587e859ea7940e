"""The real MORI-IO passes the checks that the double of it passes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import pytest
from doubles.same_transfers import CHECKS as TRANSFERS
from doubles.same_values import CHECKS as VALUES


@pytest.mark.parametrize("check", [*VALUES, *TRANSFERS], ids=lambda check: check.__name__)
def test_the_real_library_behaves_as_its_double(
    check: Callable[[ModuleType], None],
) -> None:
    for name in ("mori.cpp", "mori.io"):
        importlib.import_module(name)
    check(importlib.import_module("mori"))
