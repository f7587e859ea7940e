from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from pdcore.testing import BackendConformance, Target

BROKEN = Path(__file__).parent / "broken"
BROKEN_DIST = BROKEN / "pd_broken_engines-1.0.0.dist-info"

AT_A_REGIONS_END = {
    "test_the_first_and_the_last_byte_of_a_region_arrive",
    "test_a_longer_entry_arrives_cut",
    "test_as_many_entries_as_may_be_outstanding_arrive",
    "test_more_entries_arrive_in_slices",
    "test_done_means_landed",
    "test_a_revoked_writer_is_silent",
}

CAUGHT_BY = {
    "broken_offset": {"test_unaligned_entries_arrive"},
    "broken_lost_entry": {
        "test_scattered_entries_arrive[10000-192]",
        "test_scattered_entries_arrive[100000-64]",
        "test_as_many_entries_as_may_be_outstanding_arrive",
    },
    "broken_early_done": {
        "test_done_means_landed",
        "test_a_large_contiguous_entry_arrives",
        "test_an_entry_as_long_as_the_limit_arrives",
    },
    "broken_past_region": AT_A_REGIONS_END,
    "broken_ghost_write": {
        "test_done_means_landed",
        "test_a_room_that_prefill_aborts_fails_on_both_sides_and_is_released",
        "test_a_room_that_decode_aborts_fails_on_both_sides_and_is_released",
        "test_a_revoked_writer_is_silent",
        "test_a_write_of_a_revoked_writer_fails_and_moves_nothing",
        "test_nothing_lands_after_the_receiver_closed",
    },
    "broken_hang": {
        "test_a_revoked_writer_is_silent",
        "test_a_write_of_a_revoked_writer_fails_and_moves_nothing",
        "test_nothing_lands_after_the_receiver_closed",
        "test_a_write_to_a_dead_peer_fails",
        "test_writes_under_way_fail_when_the_peer_dies",
        "test_a_peer_beside_the_dead_one_keeps_working",
        "test_a_peer_whose_engine_was_restarted_is_not_taken_for_the_old_one",
    },
}


class Ran(msgspec.Struct):
    group: str
    test: str
    passed: bool
    reason: str


class Outcomes(msgspec.Struct):
    backend: str
    passed: int
    failed: int
    tests: list[Ran]


def conform(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pdcore", "conform", *arguments],
        env=os.environ | {"PYTHONPATH": str(BROKEN)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


Runs = dict[str, "Future[subprocess.CompletedProcess[str]]"]

ARGUMENTS = {
    "local": ["--option", "copy_threads=1"],
    "broken_hang": ["--json", "-k", "not rooms", "--patience", "4", "--hangs", "99"],
    "broken_ghost_write": ["--json"],
}
NO_ROOMS = ["--json", "-k", "not rooms"]
"""Which keeps a run short. The managers are of interest to engines that go on writing after an abort."""


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    """One run of the command line per backend, two at a time, the longest first."""
    with ThreadPoolExecutor(2) as pool:
        yield {
            name: pool.submit(conform, name, *ARGUMENTS.get(name, NO_ROOMS))
            for name in [*ARGUMENTS, *(CAUGHT_BY.keys() - ARGUMENTS)]
        }


class TestLocal(BackendConformance):
    @pytest.fixture
    def target(self) -> Target:
        return Target("local")


def test_local_with_a_copy_thread_conforms(
    runs: Runs,
) -> None:
    done = runs["local"].result()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "local conforms: " in done.stdout


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_a_broken_engine_fails_the_tests_that_are_meant_for_it(runs: Runs, name: str) -> None:
    done = runs[name].result()
    assert done.returncode == 1, done.stderr
    outcomes = msgspec.json.decode(done.stdout, type=Outcomes)
    assert {t.test for t in outcomes.tests if not t.passed} == CAUGHT_BY[name]
    assert outcomes.failed == len(CAUGHT_BY[name])
    assert all(t.reason for t in outcomes.tests if not t.passed)


def test_every_broken_engine_is_tried() -> None:
    registered = (BROKEN_DIST / "entry_points.txt").read_text().splitlines()[1:]
    assert {line.partition(" = ")[0] for line in registered} - {"broken"} == set(CAUGHT_BY)
