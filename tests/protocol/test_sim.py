"""The machine in simulated worlds: nothing is violated, and what was wrong once would be noticed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from planted import PLANTED, SEEDS
from planted_packed import PLANTED as PLANTED_PACKED

from pdcore.testing.sim.memory import Memory, ViolationError
from pdcore.testing.sim.run import Figures, run

EACH = 60
MOST = 8_000
"""Rooms within which a planted fault must be found, from its seed on: about 8 s of one idle core."""


@pytest.mark.parametrize("first", range(1, 101, 20))
def test_nothing_is_violated_in_many_worlds(first: int) -> None:
    figures = Figures()
    assert run(first, 20 * EACH, EACH, figures) is None
    assert figures.rooms == 20 * EACH
    assert figures.successes > figures.failures > 200


@pytest.mark.parametrize("name", [*PLANTED, *PLANTED_PACKED])
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (PLANTED | PLANTED_PACKED)[name](monkeypatch)
    assert run(SEEDS.get(name, 1), MOST, EACH, Figures()) is not None


def test_pages_of_who_ended_a_moment_ago_are_not_due_yet() -> None:
    assert run(40_017, 196, 196, Figures()) is None  # decode gives up 0.2 ms before its pages are looked at


def test_a_seed_is_the_same_world_again() -> None:
    first, second = Figures(), Figures()
    assert run(7, 300, 100, first) is None
    assert run(7, 300, 100, second) is None
    assert first == second


def test_the_command_says_the_seeds_and_the_figures() -> None:
    command = [sys.executable, "-m", "pdcore.testing.sim", "--rooms", "120", "--seed", "3", "--each", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("seeds 3 to 4: 120 rooms in ")


def test_bytes_in_a_page_that_somebody_else_has_are_a_violation() -> None:
    memory = Memory("decode", 1)
    (page,) = memory.take(1, serial=1) or []
    memory.write(page, 1, 0, (1, 0))
    memory.release([page], 1)
    with pytest.raises(ViolationError, match=r"bytes of request 1 land in page 0, but it is free"):
        memory.write(page, 1, 0, (1, 0))
