"""Engines that are wrong in one way each, and the conformance test that notices.

In this process, with one far process for all: what is shown is the test, and that it says what is wrong. That
honest engines pass the same tests is shown by the whole suite on ``local`` and the real engines.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from pdcore.model import DeviceKind
from pdcore.testing import BackendConformance, Target
from pdcore.testing.conformance import CLOSES
from pdcore.testing.ends import MIB
from pdcore.testing.engines import EnginesUnderTest, FarProcessPool
from pdcore.testing.rules import RuleBrokenError

BROKEN = Path(__file__).parents[1] / "broken"


@attrs.frozen
class Sabotage:
    """An engine, the test that notices, words of the message, and the test's own parameters."""

    how: str
    test: str
    words: str
    parameters: dict[str, object] = attrs.field(factory=dict)
    patience: float = 10.0
    honest: str = ""


UNALIGNED = "unaligned_entries_arrive"
SCATTERED: dict[str, object] = {"entries": 10_000, "size": 192}
STOPPED = "what_a_stopped_receiver_has_not_read_is_not_called_drained"
DEAD = "a_write_to_a_dead_peer_fails"
BOUNDS = "raw_writes_out_of_bounds"
SOCKETS = "not at all, over sockets"
THREAD = "not at all, with a thread"

SABOTAGES = [
    Sabotage("rounds targets", UNALIGNED, "bytes are wrong, the first at"),
    Sabotage("rounds sources", UNALIGNED, "bytes are wrong, the first at"),
    Sabotage("rounds lengths", UNALIGNED, "bytes are wrong, the first at"),
    Sabotage("rounds in later regions", "many_pairs_of_regions_arrive_in_one_batch", "bytes are wrong"),
    Sabotage("swaps ends of many entries", "scattered_entries_arrive", "bytes are wrong", SCATTERED),
    Sabotage("past region", "the_first_and_the_last_byte_of_a_region_arrive", "bytes outside a region"),
    Sabotage("loses last of many", "scattered_entries_arrive", "of 1920192 bytes are wrong", SCATTERED),
    Sabotage("loses first", UNALIGNED, "bytes are wrong, the first at 3:"),
    Sabotage(
        "loses beyond 65,536",
        "scattered_entries_arrive",
        "bytes are wrong",
        {"entries": 100_000, "size": 64},
    ),
    Sabotage("cuts long entries", "a_large_contiguous_entry_arrives", "bytes are wrong"),
    Sabotage("changes the batch", "a_batch_is_not_changed", "write() has changed the batch"),
    Sabotage("early done", "done_means_landed", "bytes had not landed", {"size": 16 * MIB}),
    Sabotage("a little early done", "done_means_landed", "bytes had not landed", {"size": 64}),
    Sabotage("polls early", "done_means_landed", "bytes had not landed", {"size": 16 * MIB}),
    Sabotage(
        "ghost of a failed write", "a_write_of_a_revoked_writer_fails_and_moves_nothing", "bytes landed"
    ),
    Sabotage("ghost of a done write", "a_revoked_writer_is_silent", "bytes landed after revoke()"),
    Sabotage("closes early", "nothing_lands_after_the_writer_closed", "bytes landed after the writer's"),
    Sabotage("revokes in words", "a_revoked_writer_is_silent", "bytes landed after revoke()"),
    Sabotage(
        "connects for ever",
        "connecting_to_a_dead_process_ends_in_time",
        "connect had not ended after 7 s",
    ),
    Sabotage(
        "connects under lock",
        "a_peer_that_cannot_be_reached_holds_up_no_other",
        "a write to another peer had not ended",
        patience=1.0,
    ),
    Sabotage("waits for ever", "a_wait_ends_at_its_deadline", "wait had not ended", honest=THREAD),
    Sabotage("never fails", DEAD, "a write had not ended after 1 s", patience=1.0),
    Sabotage("write raises", DEAD, "ValueError: status -5"),
    Sabotage("write exits", "one_byte_arrives", "write raised SystemExit('no transport')"),
    Sabotage("wait raises", DEAD, "RuntimeError: the handle was released"),
    Sabotage("tells once", "an_ended_transfer_goes_on_telling", "RuntimeError: the handle was released"),
    Sabotage("connect raises", "an_endpoint_that_is_noise_is_refused", "ConnectionRefusedError: [Errno 111]"),
    Sabotage("takes any memory", "a_region_that_cannot_be_registered_is_named", "", {"fault": "empty"}),
    Sabotage(
        "takes any memory",
        "a_region_that_cannot_be_registered_is_named",
        "DID NOT RAISE",
        {"fault": "unreachable device"},
    ),
    Sabotage("leaks a thread", "close_leaves_no_thread", "threads are left: ['reconnect']"),
    Sabotage("disconnects all", "a_peer_is_disconnected_beside_others", "the write failed"),
    Sabotage("mixes peers", "threads_write_to_several_peers", "bytes are wrong"),
    Sabotage("careless", "threads_write_to_one_peer", "bytes are wrong"),
    Sabotage("same endpoint", "every_engine_has_its_own_endpoint", ""),
    Sabotage("writes when closed", "a_closed_engine_refuses_everything", "DID NOT RAISE"),
    Sabotage("lies: bounds", BOUNDS, "outside the regions was DONE", {"bad": "one byte too many"}),
    Sabotage(
        "lies: bounds by half",
        BOUNDS,
        "outside the regions was DONE",
        {"bad": "one byte too many"},
        honest=SOCKETS,
    ),
    Sabotage(
        "lies: bounds once",
        "memory_that_is_registered_no_more_is_refused",
        "a write that cannot succeed did not fail",
        honest=SOCKETS,
    ),
    Sabotage("lies: silent", STOPPED, "bytes landed after close(), and the engine is silent", honest=SOCKETS),
    Sabotage("lies: drained", DEAD, "declared drained_on_failure, and a failed write is UNKNOWN"),
    Sabotage("lies: gives up", STOPPED, "bytes landed after a write that FAILED and was DRAINED"),
    Sabotage("lies: always drained", STOPPED, "a transfer that is PENDING says that it is DRAINED"),
    Sabotage(
        "lies: always drained, with a thread",
        "submission_is_as_asynchronous_as_declared",
        "a transfer is PENDING and DRAINED",
        honest=THREAD,
    ),
    Sabotage("lies: done when sent", STOPPED, "a transfer was DONE whose bytes had not landed"),
    Sabotage("lies: asynchronous", "submission_is_as_asynchronous_as_declared", "declared asynchronous"),
    Sabotage("lies: synchronous", "submission_is_as_asynchronous_as_declared", "does not say 'asynchronous'"),
    Sabotage("lies: entries", "as_many_entries_as_may_be_outstanding_arrive", "the library's queue is full"),
    Sabotage("lies: entry bytes", "a_large_contiguous_entry_arrives", "the library's queue is full"),
    Sabotage(
        "lies: kinds",
        "declared_memory_is_reached",
        "DID NOT RAISE",
        {"kind": DeviceKind.NPU},
    ),
    Sabotage("lies: settles", "what_a_dead_writer_left_settles", "declared settles, and settle() of"),
    Sabotage("lies: settles in words", "what_a_dead_writer_left_settles", "settles is not declared"),
    Sabotage("lies: descriptors", "declared_descriptors_are_enough", "at start, 2 declared"),
    Sabotage("lies: aux", "aux_travels_through_the_engine_exactly_if_it_declares_so", ""),
    Sabotage("lies: revocable", "a_revoked_writer_is_silent", "revocable=True, and revoke says"),
]


class Suite(BackendConformance):
    """The suite, whose tests are called one by one."""

    __test__ = False

    def run(self, test: str, engines: EnginesUnderTest, parameters: dict[str, object]) -> None:
        """Run one test as pytest would."""
        method = getattr(self, f"test_{test}")
        given = {"engines": engines, "target": engines.target, **parameters}
        method(**{name: given[name] for name in inspect.signature(method).parameters})


@pytest.fixture(scope="module")
def suite() -> Iterator[Suite]:
    """The suite, where the broken engines are installed, here and in the far processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BROKEN), *sys.path])
        patch.setenv("PYTHONPATH", os.pathsep.join([str(BROKEN), os.environ.get("PYTHONPATH", "")]))
        Suite.far_processes = FarProcessPool()
        yield Suite()
        Suite.far_processes.end()


@pytest.fixture
def let_go(suite: Suite) -> Iterator[None]:
    """End what hangs when the test is over."""
    event = importlib.import_module("broken_engines.hangs").LET_GO
    event.clear()
    yield
    event.set()


def run(suite: Suite, sabotage: Sabotage, how: str) -> None:
    engines = EnginesUnderTest(Target("broken", {"how": how}, sabotage.patience), suite.far_processes)
    try:
        suite.run(sabotage.test, engines, sabotage.parameters)
    finally:
        importlib.import_module("broken_engines.hangs").LET_GO.set()
        engines.end()
        for thread in threading.enumerate():
            if thread.name == "pdcore-testing-bounded":
                thread.join(30)


@pytest.mark.usefixtures("let_go")
@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda s: f"{s.how}-{s.test[:20]}")
def test_a_sabotage_is_noticed(suite: Suite, sabotage: Sabotage) -> None:
    with pytest.raises(RuleBrokenError) as caught:
        run(suite, sabotage, sabotage.how)
    rule, cause, *happened = str(caught.value).splitlines()
    assert rule.startswith("rule: ")
    assert cause.startswith("usual cause: ")
    assert sabotage.words in "\n".join(happened)


@pytest.mark.usefixtures("let_go")
@pytest.mark.parametrize("sabotage", [s for s in SABOTAGES if s.honest], ids=lambda s: s.how)
def test_the_honest_engine_beneath_it_passes(suite: Suite, sabotage: Sabotage) -> None:
    run(suite, sabotage, sabotage.honest)


def test_an_engine_that_cannot_be_closed_is_noticed(suite: Suite) -> None:
    engines = EnginesUnderTest(Target("broken", {"how": "close raises"}, 10.0), suite.far_processes)
    suite.run(DEAD, engines, {})
    with pytest.raises(RuleBrokenError, match="an engine can be closed within its patience"), CLOSES:
        engines.end()


def test_an_import_of_the_library_is_noticed(suite: Suite) -> None:
    engines = EnginesUnderTest(Target("broken_import", {}), suite.far_processes)
    with pytest.raises(RuleBrokenError, match="import the engine inside probe and pd_init_engine"):
        suite.run("importing_the_plugin_imports_no_engine_and_prints_nothing", engines, {})


def test_every_broken_engine_is_tried(suite: Suite) -> None:
    ways = importlib.import_module("broken_engines.ways").WAYS
    elsewhere = {
        "deadly",
        "exit later",
        "hung connect",
        "hung interpreter",
        "close raises",
    }  # by test_conform_command
    tried = {s.how for s in SABOTAGES} | {s.honest for s in SABOTAGES} | elsewhere
    assert set(ways) - tried == {"not at all"}
