"""Events of real managers: what is told, in which order, and that listening does no harm."""

from __future__ import annotations

import gc
import importlib
import logging
from collections.abc import Callable
from types import ModuleType

import attrs
import pytest
from distributions import install
from pair import config, finish, paired, pools, soon
from recorder import Recorder

from pdcore import (
    Deadline,
    DecodeManager,
    FailureCode,
    KVLayout,
    KVPoll,
    RoomId,
    Topology,
    TransferModel,
    select,
)
from pdcore.errors import BootstrapError, EngineError
from pdcore.events import (
    ChunkDrained,
    ChunkLanded,
    ChunkQuarantined,
    ChunkSubmitted,
    EngineStarted,
    Event,
    Events,
    MetadataReceived,
    Node,
    PairingFailed,
    PeerPaired,
    RoomEnded,
    Stage,
    StageEnded,
    stage,
)
from pdcore.model import Incarnation, Role
from pdcore.prefill import PrefillManager

NODE = Node(Role.DECODE, "local", Incarnation("a" * 32))
START = ["engine_start", "EngineStarted", "register_memory"]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    install(monkeypatch, "scripted")
    module = importlib.import_module("pd_scripted")
    module.script.reset()
    return module


def test_a_good_request_is_told_step_by_step_on_both_sides() -> None:
    told = Recorder()
    with paired(config(interval=30.0), subscribers=[told]) as pair:
        sender, receiver = pair.open(7)
        told.wait_for(PeerPaired, Role.DECODE)
        sender.init(3)
        receiver.send_metadata([4, 5, 6])
        told.wait_for(MetadataReceived, Role.PREFILL)
        sender.send([1, 2])
        told.wait_for(ChunkLanded, Role.PREFILL)
        sender.send([3])
        finish(sender, receiver)
    chunk = ["plan", "ChunkSubmitted", "ChunkLanded"]
    assert told.names(Role.PREFILL, 7) == ["RoomOpened", "MetadataReceived", *chunk, *chunk, "RoomEnded"]
    assert told.names(Role.DECODE, 7) == ["RoomOpened", "MetadataSent", "RoomEnded"]
    assert told.names(Role.PREFILL)[:6] == [*START, "announce", "RoomOpened", "connect"]
    assert [n for n in told.names(Role.DECODE) if n not in ("PeerLost", "close")] == [
        *START, "RoomOpened", "admit", "PeerPaired", "MetadataSent", "RoomEnded",
    ]  # fmt: skip

    sent, received = (told.of(RoomEnded, role)[0] for role in (Role.PREFILL, Role.DECODE))
    size = pair.prefill.pools.layout.page_bytes
    assert (sent.outcome, sent.metrics.nbytes, sent.metrics.chunks) == ("success", 3 * size, 2)
    assert (received.outcome, received.metrics.pages) == ("success", 3)
    assert [(e.pages, e.nbytes, e.is_last) for e in told.of(ChunkSubmitted)] == [
        (2, 2 * size, False), (1, size, True),
    ]  # fmt: skip
    (asked,) = told.of(MetadataReceived)
    assert (asked.pages, asked.trace, asked.peer.incarnation) == (3, None, pair.decode.incarnation)
    assert {e.node for e in told.of(Event)} == {
        Node(Role.PREFILL, "local", pair.prefill.incarnation),
        Node(Role.DECODE, "local", pair.decode.incarnation),
    }
    assert [e.transport.name for e in told.of(EngineStarted)] == ["process_vm_writev"] * 2
    assert all(e.seconds > 0 and e.error is None for e in told.of(StageEnded))


@pytest.mark.parametrize("model", list(TransferModel))
def test_a_write_that_fails_is_told_with_its_code_and_what_becomes_of_its_bytes(
    scripted: ModuleType, model: TransferModel
) -> None:
    told = Recorder()
    with paired(config(model), backend="scripted", subscribers=[told]) as pair:
        scripted.script.fail = True
        sender, receiver = pair.open(1)
        sender.init(1)
        receiver.send_metadata([3])
        sender.send([5])
        while sender.poll() is not KVPoll.FAILED:
            sender.wait(Deadline.after(0.01))
        ended = told.wait_for(RoomEnded, Role.DECODE)
        assert (ended.outcome, ended.failure) == ("engine", receiver.failure())
        quarantined = told.wait_for(ChunkQuarantined, Role.PREFILL)
        assert not told.of(ChunkDrained)
        scripted.script.held[0].drain()
        drained = told.wait_for(ChunkDrained, Role.PREFILL)
        assert (drained.room, drained.nbytes, drained.peer) == (1, quarantined.nbytes, quarantined.peer)
        assert drained.seconds > 0
    names = told.names(Role.PREFILL, 1)
    assert sorted(names[-3:]) == ["ChunkDrained", "ChunkQuarantined", "RoomEnded"]
    assert "ChunkLanded" not in names


def test_an_abort_and_a_missed_deadline_have_their_codes() -> None:
    told = Recorder()
    with paired(subscribers=[told]) as pair:
        pair.open(1)[0].abort()
        pair.decode.receiver(pair.bootstrap.address, RoomId(2), Deadline.after(0.05))
        told.wait_for(RoomEnded, Role.DECODE, lambda e: e.room == 2)
    codes = {(e.node.role, e.room): e.outcome for e in told.of(RoomEnded)}
    assert codes[Role.PREFILL, RoomId(1)] == "aborted"
    assert codes[Role.DECODE, RoomId(2)] == "deadline"


def test_a_pairing_that_fails_is_told_on_both_sides_with_every_field() -> None:
    told = Recorder()
    other = KVLayout.heads(layers=range(4), kv_heads=2, head_dim=16, page_size=8, num_pages=64)
    with (
        paired(subscribers=[told]) as pair,
        DecodeManager(select("local"), pools(other), Topology(), config(), [told]) as stranger,
    ):
        receiver = stranger.receiver(pair.bootstrap.address, RoomId(1))
        receiver.init()
        assert receiver.wait(soon()) is KVPoll.FAILED
        here, there = (told.wait_for(PairingFailed, role) for role in (Role.PREFILL, Role.DECODE))
    assert here.code is there.code is FailureCode.INCOMPATIBLE
    assert (here.peer.incarnation, there.peer.incarnation) == (stranger.incarnation, pair.prefill.incarnation)
    for event in (here, there):
        assert "layout.page_size: prefill 4, decode 8" in event.why
    assert not told.of(PeerPaired)


def test_a_start_that_fails_is_told_with_the_stage_and_the_error() -> None:
    told = Recorder()
    with pytest.raises(BootstrapError) as caught:
        PrefillManager(select("local"), pools(), Topology(), "127.0.0.1:1", config(request=0.5), [told])
    errors = {e.stage: e.error for e in told.of(StageEnded)}
    assert list(errors) == [Stage.ENGINE_START, Stage.REGISTER_MEMORY, Stage.ANNOUNCE, Stage.CLOSE]
    assert [stage for stage, error in errors.items() if error] == [Stage.ANNOUNCE]
    assert errors[Stage.ANNOUNCE] is caught.value


def test_a_subscriber_that_raises_is_logged_once_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Event) -> None:
        raise SystemExit(f"cannot take {type(event).__name__}")

    told = Recorder()
    with caplog.at_level(logging.WARNING, "pdcore.events"), paired(subscribers=[broken, told]) as pair:
        pair.move(1, [1], [2])
        pair.move(2, [3], [4])
    assert [e.outcome for e in told.of(RoomEnded)] == ["success"] * 4
    messages = [r.getMessage() for r in caplog.records if r.name == "pdcore.events"]
    assert len(messages) == 2  # once by each of the two managers
    assert "failed with StageEnded and is told on nevertheless (logged once): SystemExit" in messages[0]


def test_who_subscribes_hears_from_then_on_until_it_no_longer_wants_to() -> None:
    first, second = Recorder(), Recorder()
    with paired(config(interval=30.0)) as pair:
        assert not pair.decode.events.on
        pair.move(1, [1], [1])
        end_first, end_second = pair.decode.subscribe(first), pair.decode.subscribe(second)
        pair.move(2, [2], [2])
        end_first()
        end_first()
        pair.move(3, [3], [3])
        end_second()
        assert not pair.decode.events.on
        pair.move(4, [4], [4])
    one = ["RoomOpened", "MetadataSent", "RoomEnded"]
    assert first.names(Role.DECODE) == one
    assert second.names(Role.DECODE) == one * 2


def test_no_event_is_made_when_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    for kind in all_kinds(Event):
        monkeypatch.setattr(kind, "__init__", counting(kind.__init__, made))
    with paired(config(interval=0.02)) as pair:
        pair.move(1, [1], [1])
        pair.open(2)[0].abort()
        assert made == []
        pair.decode.subscribe(lambda _: None)
        pair.move(3, [1], [1])
    assert {"RoomOpened", "MetadataSent", "RoomEnded"} <= set(made)


def counting(init: Callable[..., None], made: list[str]) -> Callable[..., None]:
    def counted(self: Event, *args: object, **kwargs: object) -> None:
        made.append(type(self).__name__)
        init(self, *args, **kwargs)

    return counted


def test_an_installed_observer_hears_the_events_of_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "observer_counts")
    module = importlib.import_module("pd_observer_counts")
    module.events.clear()
    with paired() as pair:
        pair.move(1, [1], [1])
        nodes = {e.node.role for e in module.events if isinstance(e, RoomEnded)}
        assert nodes == {Role.PREFILL, Role.DECODE}
        assert [type(e).__name__ for e in module.events if e.node.role is Role.DECODE][:3] == [
            "StageEnded", "EngineStarted", "StageEnded",
        ]  # fmt: skip


def test_a_stage_takes_the_time_and_reports_what_was_raised() -> None:
    told = Recorder()
    events = Events(NODE)
    with stage(events, Stage.PLAN) as unheard:
        pass
    assert unheard.seconds > 0
    events.subscribe(told)
    error = EngineError("it broke", "1 of 2", "mend it")
    with pytest.raises(EngineError), stage(events, Stage.PLAN, room=RoomId(5)) as heard:
        raise error
    assert told.of(Event) == [StageEnded(NODE, Stage.PLAN, heard.seconds, error, RoomId(5), None)]


def test_every_event_is_frozen_and_has_its_time() -> None:
    gc.collect()  # attrs leaves the classes behind that it makes slotted ones of
    assert len(all_kinds(Event)) == 18
    for kind in all_kinds(Event):
        assert attrs.fields(kind).at.kw_only
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            kind.__new__(kind).node = NODE  # type: ignore[misc]  # that it cannot be set is the point


def all_kinds(kind: type[Event]) -> list[type[Event]]:
    return [kind, *(below for child in kind.__subclasses__() for below in all_kinds(child))]
