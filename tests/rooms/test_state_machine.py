"""Random operations under random faults: the invariants of docs/INVARIANTS.md hold after every step."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pdcore.decode import KVReceiver
from pdcore.testing.faults.pair import FaultyPair
from pdcore.testing.faults.replay import ROOMS, replay
from pdcore.testing.faults.schedule import Fault, Schedule

rooms = st.integers(0, ROOMS - 1)
pages = st.integers(0, 4)
sides = st.booleans()


class Schedules(RuleBasedStateMachine):
    """Hypothesis chooses the operations, and the seed of the faults."""

    @initialize(seed=st.integers(0, 2**32), rate=st.sampled_from([0.05, 0.2, 0.5]))
    def begin(self, seed: int, rate: float) -> None:
        self.world = FaultyPair(Schedule(seed, rate))

    @rule(room=rooms, pages=pages, prefill_first=sides)
    def open(self, room: int, pages: int, prefill_first: bool) -> None:
        self.world.open(room, pages, prefill_first)

    @rule(room=rooms, pages=pages, prefill_first=sides)
    def serve(self, room: int, pages: int, prefill_first: bool) -> None:
        self.world.open(room, pages, prefill_first)
        self.world.send(room, pages)

    @rule(room=rooms, pages=pages, prefill=sides)
    def open_one(self, room: int, pages: int, prefill: bool) -> None:
        self.world.open_one(room, pages, prefill)

    @rule(room=rooms, pages=st.integers(1, 4))
    def send(self, room: int, pages: int) -> None:
        self.world.send(room, pages)

    @rule(room=rooms, prefill=sides)
    def abort(self, room: int, prefill: bool) -> None:
        self.world.abort(room, prefill)

    @rule(room=rooms, prefill=sides)
    def clear(self, room: int, prefill: bool) -> None:
        self.world.clear(room, prefill)

    @rule()
    def clear_ended(self) -> None:
        self.world.clear_ended()

    @rule(seconds=st.floats(0.001, 0.08))
    def pause(self, seconds: float) -> None:
        self.world.pause(seconds)

    @rule(prefill=sides)
    def restart(self, prefill: bool) -> None:
        self.world.restart(prefill)

    @invariant()
    def nothing_is_wrong(self) -> None:
        if hasattr(self, "world"):
            self.world.look()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.finish()


# No shrinking: what threads do does not come again step by step. `python -m pdcore.testing.faults`
# tries other seeds for as long as one likes.
Schedules.TestCase.settings = settings(
    max_examples=8,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TestSchedules = Schedules.TestCase


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("seed", range(6))
def test_a_seeded_schedule_breaks_nothing_and_leaves_nothing(seed: int) -> None:
    replay(seed, 1, 0.0)  # what a first run opens for good
    before = descriptors()
    run = replay(seed, 120, 0.15)
    assert not run.broken, "\n".join((*run.operations, *run.faults, run.broken))
    assert run.successes
    assert descriptors() <= before


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault not in (Fault.NONE, Fault.RAISE)])
def test_much_of_one_fault_breaks_nothing(fault: Fault) -> None:
    run = replay(100, 60, 0.6, [fault])
    assert not run.broken, "\n".join((*run.operations, *run.faults, run.broken))
    assert run.faults


def broken_by(seeds: range, faults: list[Fault]) -> str:
    """Return how the first seed that breaks an invariant does so."""
    return next((run.broken for s in seeds if (run := replay(s, 120, 0.4, faults)).broken), "")


def test_pages_that_are_released_too_early_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KVReceiver, "release_safe", lambda self: self.record.status.terminal)
    broken = broken_by(range(30), [Fault.LATE, Fault.HANG])
    # Free pages, or those that decode has filled since with what it holds of another request.
    assert "of decode were written to" in broken or "with wrong bytes" in broken, broken
