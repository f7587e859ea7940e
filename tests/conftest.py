"""Every test leaves no thread of pdcore behind: of a peer that left, one may end a moment later.

The files that take longest begin first, so that the workers of a parallel run end together.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair import Pair

sys.path.append(str(Path(__file__).parent / "stand_ins"))  # last: an engine that is installed wins

MOMENT = 5.0
# fmt: off
LONGEST = (
    "wheels", "chaos", "mooncake_conformance", "nixl_conformance", "engines_kill", "conform_local",
    "kill", "dead_prefill", "demo", "cli_backends", "bench", "fork", "shortage", "nixl_engine",
    "pauses", "plan_properties", "selection", "demo_groups", "mooncake_engine", "sabotage",
    "prometheus", "many_rooms", "conform_command", "conformance", "mooncake_ipv6", "groups",
    "doctor_echo", "state_machine",
)
# fmt: on
"""Files by the time that they took on two idle cores; the order of the others doesn't matter."""
_PLACES = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order files, not what is in them."""
    items.sort(key=lambda item: _PLACES.get(item.path.name, len(_PLACES)))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + MOMENT
    new = [
        t
        for t in threading.enumerate()
        # A far process of the conformance suite serves several tests, and so does who reads what it prints.
        if t not in before and t.name.startswith("pdcore-") and not t.name.startswith("pdcore-child-")
    ]
    for thread in new:
        thread.join(max(0.0, until - time.monotonic()))
    left = [t.name for t in new if t.is_alive()]
    assert not left, f"threads were left behind: {left}"


@pytest.fixture(autouse=True)
def _pages_are_free_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests that share a pair use the same pages, which those of the last one have given back by then."""
    yield
    for value in request.node.funcargs.values():
        if isinstance(value, Pair):
            value.settle()
