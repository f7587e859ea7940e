"""Who carries out what a machine wants, in what order, and what becomes of it when something raises."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import attrs
import numpy as np
import pytest
from pair import paired, soon

from pdcore.errors import FailureCode, KVTransferError, RoomError
from pdcore.events import Events, Node
from pdcore.events.metrics import RequestMetrics
from pdcore.layout.kv import KVLayout
from pdcore.managers.driver import Driver
from pdcore.model import Generation, Incarnation, KVPoll, Role, RoomId, new_incarnation
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.topology import Topology
from pdcore.prefill.link import PeerLink
from pdcore.protocol import actions as a
from pdcore.protocol import stimuli as s
from pdcore.protocol.history.log import StimulusLog
from pdcore.protocol.machine import Machine, Settings
from pdcore.protocol.peer import Facts, Fit
from pdcore.protocol.room import Room
from pdcore.protocol.send.answers import Answers
from pdcore.protocol.send.send_room import SendRoom
from pdcore.rooms.endings import Endings
from pdcore.rooms.handle import RoomHandle
from pdcore.wire import Inquiry, Opened, PairRequest, Route

LAYOUT = KVLayout.heads(layers=range(1), kv_heads=1, head_dim=8, page_size=1, num_pages=4)
LATER = 1e12
WHY = KVTransferError(FailureCode.ABORTED, "given up", "a test", "-")
DECODE = Route(b"decode")


def described(role: Role, incarnation: Incarnation) -> PeerDescription:
    return PeerDescription(
        role, incarnation, f"{role.value}:1", "0", "none", "", Topology(), LAYOUT, (), None, 0, (), b"", b"",
        max_message_bytes=2**20,
    )  # fmt: skip


class Handle(RoomHandle):
    """A handle of a room that has no pages."""

    side = "prefill"

    def unsafe_because(self) -> str:
        return ""

    def metric(self) -> RequestMetrics:
        raise NotImplementedError


class Side:
    """A machine that sends, driven; who carries out an action notes it, and does what the test says."""

    def __init__(self) -> None:
        self.endings, self.events = Endings(), Events(Node(Role.PREFILL, "none", new_incarnation()), [])
        self.machine = Machine(described(Role.PREFILL, new_incarnation()), Fit(lambda _: Facts()), Settings())
        self.done: list[a.Action] = []
        self.instead: dict[type, Callable[[a.Action], object]] = {}
        kinds = a.Post, a.Begun, a.Ended, a.Silent, a.Forget, a.Connect, a.Lost
        self.driver = Driver(self.machine, dict.fromkeys(kinds, self._do), StimulusLog())
        self._numbers = itertools.count(1)

    def _do(self, action: a.Action) -> None:
        if type(action) in self.instead:
            self.instead[type(action)](action)
        self.done.append(action)
        if isinstance(action, a.Forget):
            del self.driver.handles[action.generation]

    def feed(self, stimulus: s.Stimulus) -> None:
        self.driver.feed(stimulus)

    def open(self, room: int | None = None, deadline: float = LATER) -> Handle:
        generation = self.driver.generation()
        id_ = RoomId(generation if room is None else room)

        def make(record: Room) -> Handle:
            return Handle(self, record)

        return self.driver.open(s.OpenSend(id_, generation, deadline), make)

    def pair(self) -> None:
        """Pair with a decode rank."""
        there = described(Role.DECODE, new_incarnation())
        self.feed(s.Heard(DECODE, PairRequest(there)))
        (peer,) = self.machine.peers.by_route.values()
        self.feed(s.PeerConnected(DECODE, peer.identity))

    def names(self, generation: Generation | None = None) -> list[str]:
        """The actions that were carried out, of one room or of all."""
        return [
            type(action).__name__
            for action in self.done
            if generation in (None, getattr(action, "generation", None))
        ]


@pytest.fixture
def side() -> Side:
    return Side()


def raises(_: object) -> None:
    raise ZeroDivisionError("somebody's code")


def interrupted(_: object) -> None:
    raise KeyboardInterrupt


def give_up(handle: RoomHandle) -> s.GiveUp:
    return s.GiveUp(handle.record.generation, WHY)


def clear(handle: RoomHandle) -> s.Clear:
    return s.Clear(handle.record.generation)


# --- order ----------------------------------------------------------------------------------


def test_a_room_is_told_of_before_it_is_forgotten(side: Side) -> None:
    handle = side.open()
    assert side.driver.handles == {handle.record.generation: handle}
    side.feed(clear(handle))
    assert side.names() == ["Begun", "Ended", "Forget"]
    assert not side.driver.handles


def test_what_an_action_brings_about_is_done_after_what_was_wanted_before(side: Side) -> None:
    side.pair()
    first, second = side.open(), side.open()
    side.feed(s.Heard(DECODE, Opened(first.room, Generation(1), 0.0)))
    side.done.clear()
    side.instead[a.Post] = lambda _: side.feed(give_up(second))
    side.feed(clear(first))
    ends = [action.generation for action in side.done if isinstance(action, a.Ended)]
    assert side.names() == ["Post", "Ended", "Forget", "Ended"]
    assert ends == [first.record.generation, second.record.generation]


def test_a_thread_that_feeds_does_not_wait_for_another_that_carries_out(side: Side) -> None:
    reached, go_on, by = threading.Event(), threading.Event(), list[str]()

    def held(action: a.Action) -> None:
        by.append(threading.current_thread().name)
        reached.set()
        assert go_on.wait(30)

    handles = [side.open() for _ in range(3)]
    side.instead[a.Ended] = held
    slow = threading.Thread(target=lambda: side.feed(give_up(handles[0])), name="slow")
    slow.start()
    assert reached.wait(30)
    for handle in handles[1:]:
        side.feed(clear(handle))
    assert all(handle.record.over for handle in handles)
    assert side.names() == 3 * ["Begun"]
    go_on.set()
    slow.join(30)
    assert side.names() == [*3 * ["Begun"], "Ended", *2 * ["Ended", "Forget"]]
    assert by == 3 * ["slow"]


def test_of_many_threads_one_carries_out_at_a_time_and_nothing_is_lost(side: Side) -> None:
    busy, overlaps, generations = threading.Lock(), list[str](), list[Generation]()

    def alone(action: a.Action) -> None:
        if busy.acquire(blocking=False):
            busy.release()
        else:
            overlaps.append(type(action).__name__)

    for kind in (a.Begun, a.Ended, a.Forget):
        side.instead[kind] = alone

    def work() -> None:
        for _ in range(100):
            handle = side.open()
            generations.append(handle.record.generation)
            side.feed(give_up(handle))
            side.feed(clear(handle))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not overlaps
    assert not side.driver.handles
    assert len(set(generations)) == 800
    order: dict[Generation, list[str]] = {}
    for action in side.done:
        assert isinstance(action, a.Begun | a.Ended | a.Forget)
        order.setdefault(action.generation, []).append(type(action).__name__)
    assert set(order) == set(generations)
    assert all(steps == ["Begun", "Ended", "Forget"] for steps in order.values())


def test_the_last_stimuli_are_remembered_in_order_with_their_moments(side: Side) -> None:
    side.feed(give_up(side.open()))
    entries = side.driver.entries()
    assert [type(entry.stimulus) for entry in entries] == [s.OpenSend, s.GiveUp]
    assert entries[0].moment <= entries[1].moment


# --- what raises ----------------------------------------------------------------------------


def test_a_call_that_is_refused_raises_and_changes_nothing(side: Side) -> None:
    handle = side.open(5)
    with pytest.raises(RoomError, match="room 5 is open already"):
        side.open(5)
    with pytest.raises(RoomError, match=r"send\(\) of room 5 was refused"):
        side.feed(s.Supply(handle.record.generation, np.array([0])))
    assert side.names() == ["Begun"]
    assert list(side.driver.handles) == [handle.record.generation]


def test_an_action_that_raises_ends_its_room_and_no_other(
    side: Side, caplog: pytest.LogCaptureFixture
) -> None:
    other = side.open()
    side.instead[a.Begun] = raises
    handle = side.open()
    failure = handle.failure()
    assert failure is not None
    assert failure.code is FailureCode.ENGINE
    assert failure.happened == "something raised on the prefill side while it worked on room 2"
    assert "somebody's code" in failure.there_is
    assert "Begun could not be carried out" in caplog.text
    assert side.names(handle.record.generation) == ["Ended"]
    assert not other.record.over


def test_an_action_that_raises_an_error_of_pdcore_ends_its_room_with_it(side: Side) -> None:
    def refuses(_: object) -> None:
        raise WHY

    side.instead[a.Begun] = refuses
    assert side.open().failure() is WHY


def test_what_follows_an_action_that_raises_is_carried_out(side: Side) -> None:
    handles = [side.open() for _ in range(3)]
    side.instead[a.Ended] = raises
    for handle in handles:
        side.feed(clear(handle))
    assert side.names() == [*3 * ["Begun"], *3 * ["Forget"]]


def test_a_machine_that_raises_ends_the_room_that_it_was_about(
    side: Side, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("the machine's code")

    handle, other = side.open(), side.open()
    monkeypatch.setattr(SendRoom, "announce", broken)
    side.feed(s.AnnouncePages(handle.record.generation, 1, None, 0))
    monkeypatch.undo()
    failure = handle.failure()
    assert failure is not None
    assert "the machine's code" in failure.there_is
    assert "handling AnnouncePages failed" in caplog.text
    side.feed(s.AnnouncePages(other.record.generation, 1, None, 0))
    assert not other.record.over
    assert side.names() == ["Begun", "Begun", "Ended"]


def test_what_a_machine_wanted_before_it_raised_is_carried_out(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = side.open(1), side.open(2)
    side.pair()
    for handle in rooms:
        side.feed(s.Heard(DECODE, Opened(handle.room, Generation(handle.room), 0.0)))
    side.done.clear()
    tell = Answers.tell_guests

    def tells_one(self: Answers, room: SendRoom) -> None:
        if room is rooms[1].record:
            raise ZeroDivisionError("the second")
        tell(self, room)

    monkeypatch.setattr(Answers, "tell_guests", tells_one)
    side.feed(s.Close(WHY))
    assert side.names() == ["Post", "Ended", "Ended"]


@pytest.mark.parametrize("ends", ["answered", "lost"])
def test_a_rank_is_told_if_connecting_to_it_raises_and_may_come_again(side: Side, ends: str) -> None:
    side.instead[a.Connect] = raises
    there = described(Role.DECODE, new_incarnation())
    side.feed(s.Heard(DECODE, PairRequest(there)))
    assert side.names() == ["Post", "Lost"]
    side.instead.clear()
    side.feed(s.Heard(DECODE, PairRequest(there)))
    assert side.names()[-1] == "Connect"
    (peer,) = side.machine.peers.by_route.values()
    if ends == "lost":
        side.feed(s.PeerGone(DECODE, "it left", peer.identity))
    else:
        side.feed(s.PeerConnected(DECODE, peer.identity))
    assert side.names()[-1] == ("Lost" if ends == "lost" else "Post")


def test_a_pairing_in_which_prefill_cannot_make_a_link_ends_at_once_and_the_next_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_threads(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with paired() as pair:
        monkeypatch.setattr(PeerLink, "__init__", no_threads)
        sender, receiver = pair.open(1)
        for handle in (sender, receiver):
            assert handle.wait(soon()) is KVPoll.FAILED
            failure = handle.failure()
            assert failure is not None
            assert failure.code is FailureCode.ENGINE
            assert "can't start new thread" in failure.there_is
        monkeypatch.undo()
        pair.move(2, [0], [0])


def test_a_look_up_that_raises_ends_the_rooms_that_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with paired() as pair:
        monkeypatch.setattr(pair.decode._lookup, "find", raises)
        receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(1))
        receiver.init()
        assert receiver.wait(soon()) is KVPoll.FAILED
        failure = receiver.failure()
        assert failure is not None
        assert failure.happened.startswith("looking for the prefill DP rank of room 1")
        monkeypatch.undo()
        pair.move(2, [0], [0])


# --- Ctrl-C ---------------------------------------------------------------------------------


def test_an_action_that_is_interrupted_ends_its_room_and_the_next_who_feeds_goes_on(side: Side) -> None:
    side.instead[a.Begun] = interrupted
    with pytest.raises(KeyboardInterrupt):
        side.open()
    (handle,) = side.driver.handles.values()
    assert handle.record.over
    assert not side.done
    side.instead.clear()
    side.feed(s.Tick())
    assert side.names() == ["Ended"]


@pytest.mark.parametrize("kind", [a.Post, a.Ended, a.Forget])
def test_who_is_to_be_told_is_told_though_it_was_interrupted(side: Side, kind: type[a.Action]) -> None:
    side.pair()
    handle = side.open()
    side.feed(s.Heard(DECODE, Opened(handle.room, Generation(1), 0.0)))
    side.done.clear()
    side.instead[kind] = interrupted
    with pytest.raises(KeyboardInterrupt):
        side.feed(clear(handle))
    side.instead.clear()
    side.feed(s.Tick())
    assert side.names() == ["Post", "Ended", "Forget"]


@contextmanager
def interrupting(number: int, fired: list[str]) -> Iterator[None]:
    """Have Ctrl-C come at the so-manieth call or return at which Python looks for signals."""
    left = itertools.count()

    def event(frame: FrameType, what: str, _: object) -> None:
        if what in ("call", "c_return") and "pdcore" in frame.f_code.co_filename and next(left) == number:
            fired.append(frame.f_code.co_name)
            sys.setprofile(None)
            raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(event)
    try:
        yield
    finally:
        sys.setprofile(before)


def test_wherever_ctrl_c_comes_the_side_goes_on_and_tells_of_every_room_that_ended() -> None:
    for number in itertools.count():
        side, fired = Side(), list[str]()
        side.pair()
        handle, other = side.open(), side.open()
        side.feed(s.Heard(DECODE, Opened(handle.room, Generation(1), 0.0)))
        side.done.clear()
        try:
            with interrupting(number, fired):
                side.feed(give_up(handle))
        except KeyboardInterrupt:
            pass
        side.feed(s.Tick())
        assert handle.record.over == ("Ended" in side.names(handle.record.generation)), fired
        side.feed(clear(handle))
        side.feed(clear(other))
        assert not side.driver.handles, fired
        assert "Ended" in side.names(handle.record.generation), fired
        if not fired:
            break
    assert number > 20


def test_peers_are_told_of_all_that_happened_together_before_anybody_is_woken(side: Side) -> None:
    side.pair()
    handles = [side.open(number) for number in range(1, 4)]
    for handle in handles:
        side.feed(s.Heard(DECODE, Opened(handle.room, Generation(handle.room), 0.0)))
    side.done.clear()
    side.driver.feed(*map(give_up, handles))
    assert side.names() == ["Post"] * 3 + ["Ended"] * 3


def test_a_defect_in_one_of_several_keeps_none_of_the_others(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = (side.open(number) for number in range(1, 4))
    end = side.machine.sending.give_up
    once = iter([None])

    def broken(room: SendRoom, failure: KVTransferError) -> None:
        if room is second.record and next(once, 0) is None:
            raise ZeroDivisionError("a defect")
        end(room, failure)

    monkeypatch.setattr(side.machine.sending, "give_up", broken)
    side.driver.feed(*map(give_up, (first, second, third)))
    assert side.names().count("Ended") == 3
    assert first.failure() is third.failure() is WHY
    assert "a defect" in str(second.failure())


def test_a_word_that_is_interrupted_does_not_keep_its_rank_from_the_next(side: Side) -> None:
    side.pair()
    side.instead[a.Post] = interrupted
    with pytest.raises(KeyboardInterrupt):
        side.feed(s.Heard(DECODE, Inquiry(RoomId(9), Generation(1))))
    side.instead.clear()
    side.feed(s.Heard(DECODE, Inquiry(RoomId(8), Generation(2))))
    told = [action.message for action in side.done if isinstance(action, a.Post)]
    assert [attrs.asdict(message, recurse=False)["room"] for message in told[-2:]] == [9, 8]
