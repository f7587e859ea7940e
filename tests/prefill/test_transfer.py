"""How deliveries meet an engine: its limits, its failures, and bytes that are still under way."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from functools import partial
from types import ModuleType

import attrs
import numpy as np
import pytest
from distributions import install
from pair import Pair, config, finish, paired, pools, same_pages, soon

from pdcore import (
    Deadline,
    EngineError,
    FailureCode,
    KVPoll,
    KVSender,
    Pools,
    StateBuffer,
    StateComponent,
    TransferConfig,
    TransferModel,
)
from pdcore.contract.budget import EntryBudget

MODELS = list(TransferModel)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    install(monkeypatch, "scripted")
    module = importlib.import_module("pd_scripted")
    module.script.reset()
    return module


def until(pair: Pair, condition: Callable[[], bool]) -> None:
    """Wait on the managers' own condition until something holds; give up after a while."""
    deadline = soon()
    while not condition():
        assert not deadline.expired
        pair.decode.finished(Deadline.after(0.005))


def succeeded(sender: KVSender) -> bool:
    return sender.poll() is KVPoll.SUCCESS


@pytest.mark.parametrize("model", MODELS)
def test_the_limits_of_an_engine_are_kept(scripted: ModuleType, model: TransferModel) -> None:
    source, target = list(range(30, 40)), list(range(10))
    with paired(config(model), backend="scripted") as pair:
        rooms = [pair.open(room) for room in range(3)]
        for sender, receiver in rooms:
            sender.init(10)
            receiver.send_metadata([p + 10 * sender.room for p in target])
            sender.send(source[:7])
            sender.send(source[7:])
        for sender, receiver in rooms:
            until(pair, partial(succeeded, sender))
            finish(sender, receiver)
        for room in range(3):
            assert same_pages(pair.prefill.pools, source, pair.decode.pools, [p + 10 * room for p in target])
    assert scripted.script.longest_entry == 300
    assert scripted.script.most_outstanding <= 10
    assert scripted.script.calls >= 3 * 8 * (6 + 3) // 10


PACKED = attrs.evolve(config(), transfer=TransferConfig(staging="always"))


def test_the_limits_of_an_engine_are_kept_by_what_goes_packed(scripted: ModuleType) -> None:
    with paired(PACKED, backend="scripted") as pair:
        for room in range(3):
            pair.move(room, list(range(30, 50)), list(range(20)), aux_slot=None)
        assert scripted.script.longest_entry == 300
    assert scripted.script.most_outstanding <= 10


def test_who_has_a_slot_and_lacks_budget_waits_for_budget(
    scripted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited, wait = threading.Event(), EntryBudget.wait

    def noted(self: EntryBudget, entries: int, deadline: Deadline) -> bool:
        waited.set()
        return wait(self, entries, deadline)

    with paired(PACKED, backend="scripted") as pair:
        pair.move(1, [1], [2], aux_slot=None)
        (link,) = pair.prefill._links._links.values()
        monkeypatch.setattr(EntryBudget, "wait", noted)
        assert link.budget.take(10)
        sender, receiver = pair.open(2)
        sender.init(1)
        receiver.send_metadata([3])
        sender.send([5])
        assert waited.wait(30)
        link.budget.give(10)
        finish(sender, receiver)


@pytest.mark.parametrize("model", MODELS)
def test_a_hung_engine_ends_the_room_but_not_the_quarantine(
    scripted: ModuleType, model: TransferModel
) -> None:
    with paired(config(model), backend="scripted") as pair:
        scripted.script.hold = True
        sender, receiver = pair.open(1, Deadline.after(1.0))
        sender.init(1)
        receiver.send_metadata([3])
        until(pair, lambda: sender.poll() is not KVPoll.BOOTSTRAPPING)
        sender.send([5])
        until(pair, lambda: sender.poll() is KVPoll.FAILED)
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = sender.failure()
        assert failure is not None
        assert failure.code is FailureCode.DEADLINE
        until(pair, lambda: len(pair.prefill.quarantine) == 1)
        assert not sender.release_safe()
        assert not receiver.release_safe()
        sender.clear()
        receiver.clear()
        scripted.script.held[0].let_go()
        until(pair, lambda: sender.release_safe() and receiver.release_safe())
        scripted.script.hold = False
        pair.move(1, [6], [7])


@pytest.mark.parametrize("model", MODELS)
def test_a_failed_write_frees_the_pages_only_once_it_is_drained(
    scripted: ModuleType, model: TransferModel
) -> None:
    with paired(config(model), backend="scripted") as pair:
        scripted.script.fail = True
        sender, receiver = pair.open(1)
        sender.init(1)
        receiver.send_metadata([3])
        sender.send([5])
        until(pair, lambda: sender.poll() is KVPoll.FAILED)
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.code is FailureCode.ENGINE
        assert failure.happened.startswith("the script failed it (room 1 to decode")
        assert not sender.release_safe()
        assert not receiver.release_safe()
        for manager in (pair.prefill, pair.decode):
            manager.finished(Deadline.after(0.01))  # that it ended, if it was not told before
        scripted.script.held[0].drain()
        for manager, handle in ((pair.prefill, sender), (pair.decode, receiver)):
            assert manager.finished(soon()) == [1]
            assert handle.release_safe()
            assert manager.finished(Deadline.after(0.001)) == []


@pytest.mark.parametrize("model", MODELS)
def test_an_engine_that_raises_fails_the_room_and_its_pages_wait_for_the_engines_end(
    scripted: ModuleType, model: TransferModel
) -> None:
    with paired(config(model), backend="scripted") as pair:
        pair.move(9, [1], [1])
        scripted.script.explode = True
        sender, receiver = pair.open(1)
        sender.init(1)
        receiver.send_metadata([3])
        sender.send([5])
        until(pair, lambda: sender.poll() is KVPoll.FAILED)
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.there_is == "RuntimeError('the script has it raise')"
        assert not sender.release_safe()
        assert not receiver.release_safe()
        scripted.script.explode = False
        pair.move(2, [6], [7])
        pair.prefill.close()
        assert sender.release_safe()
        assert receiver.wait(soon()) is KVPoll.FAILED
        until(pair, receiver.release_safe)


def with_state(kind: str) -> Pools:
    return pools(state=[StateComponent(kind, 8, (StateBuffer("a", 64), StateBuffer("b", 32)))])


def test_a_backends_own_plan_for_a_state_component_is_used(scripted: ModuleType) -> None:
    source, target = with_state("swapped"), with_state("swapped")
    with paired(source=source, target=target, backend="scripted") as pair:
        sender, receiver = pair.open(1)
        sender.init(1)
        receiver.send_metadata([0], None, [[5, 6, 7]])
        sender.send([0], [[1, 2, 3]])
        finish(sender, receiver)
    for here, there in zip(source.state[0].regions, target.state[0].regions, strict=True):
        assert isinstance(here.owner, np.ndarray)
        assert isinstance(there.owner, np.ndarray)
        assert np.array_equal(here.owner[[1, 2, 3]], there.owner[[7, 6, 5]])


def test_a_state_component_that_the_backend_refuses_keeps_the_peers_apart(scripted: ModuleType) -> None:
    with paired(source=with_state("refused"), target=with_state("refused"), backend="scripted") as pair:
        _sender, receiver = pair.open(1)
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.code is FailureCode.INCOMPATIBLE
        assert "state 'refused'" in failure.there_is
        assert "it is not for this backend" in failure.there_is


def test_a_plan_that_leaves_the_regions_fails_that_room_before_the_engine_sees_it(
    scripted: ModuleType,
) -> None:
    with paired(source=with_state("absurd"), target=with_state("absurd"), backend="scripted") as pair:
        sender, receiver = pair.open(1)
        sender.init(1)
        receiver.send_metadata([0], None, [[5]])
        sender.send([0], [[1]])
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.code is FailureCode.PLAN
        assert failure.happened.startswith("entry 0 of a write batch leaves its local region (room 1 to")
        assert f"length {2**60}, region length 512" in failure.there_is
        assert scripted.script.calls == 0
        until(pair, receiver.release_safe)


def test_an_engine_that_cannot_prove_its_end_is_reported_and_leaves_nothing_behind(
    scripted: ModuleType,
) -> None:
    with paired(backend="scripted") as pair:
        pair.move(1, [1], [1])
        sender, receiver = pair.open(2)
        sender.init(1)
        receiver.send_metadata([3])
        scripted.script.refuse_to_close = True
        with pytest.raises(EngineError, match="close cannot prove"):
            pair.prefill.close()
        scripted.script.refuse_to_close = False
        assert receiver.wait(soon()) is KVPoll.FAILED
        assert not pair.prefill.channel.alive
