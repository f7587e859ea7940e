"""Whoever ends a room tells the other side at once, in whatever order both sides come.

All deadlines are 300 s: nobody who waits for one ends in time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import attrs
import pytest
from groups import Groups, Model, groups, ranks
from pair import MHA, Pair, config, early, finish, paired, peers, pools, same_pages, soon, until

from pdcore import (
    Config,
    ControlConfig,
    Deadline,
    DecodeManager,
    FailureCode,
    KVPoll,
    KVReceiver,
    KVSender,
    KVTransferError,
    PageOrder,
    PrefillManager,
    RoomId,
    Topology,
    select,
)
from pdcore.children import Child
from pdcore.protocol import stimuli as s
from pdcore.protocol.machine import Machine
from pdcore.protocol.send.lives import DOUBT
from pdcore.testing.chaos.messages import (
    BeginRoom,
    ChaosWorkerSettings,
    Command,
    Event,
    RoomOver,
    WorkerServes,
    decode_event,
)
from pdcore.testing.chaos.worker import LAYOUT, SLOTS
from pdcore.testing.faults.memory import WatchedMemory
from pdcore.wire import Route

CONFIG = config(request=300.0)
ROOMS = itertools.count(100)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with paired(CONFIG) as both:
        both.move(1, [0], [0])
        yield both


@pytest.fixture
def room() -> RoomId:
    return RoomId(next(ROOMS))


@contextmanager
def another_decode(cfg: Config = CONFIG) -> Iterator[DecodeManager]:
    """A second decode worker, which has not paired yet."""
    with DecodeManager(select("local"), pools(), Topology(), cfg) as decode:
        yield decode


def failed(*handles: KVSender | KVReceiver) -> KVTransferError:
    """Wait until rooms have failed; return why the first did."""
    for handle in handles:
        assert handle.wait(soon()) is KVPoll.FAILED
    failure = handles[0].failure()
    assert failure is not None
    return failure


def opened(pair: Pair, room: RoomId, decode: DecodeManager | None = None) -> KVReceiver:
    """A room that decode has open, paired if its worker is, and has not asked for."""
    receiver = (decode or pair.decode).receiver(pair.bootstrap.address, room)
    receiver.init()
    return receiver


def asked(pair: Pair, room: RoomId, decode: DecodeManager | None = None, page: int = 5) -> KVReceiver:
    receiver = opened(pair, room, decode)
    receiver.send_metadata([page])
    return receiver


def let_go(pair: Pair, room: RoomId) -> None:
    """A life that decode alone had: asked for, given up, and its page free again."""
    receiver = asked(pair, room)
    receiver.clear()
    until(lambda: given_up(pair, room))
    until(receiver.release_safe)


def offered(pair: Pair, room: RoomId) -> KVSender:
    sender = pair.prefill.sender(room)
    sender.init(1)
    sender.send([3])
    return sender


def later(pair: Pair) -> bool:
    """Whether prefill waits a moment for what a word may mean."""
    return bool(pair.prefill.driver.look(lambda machine: machine.meeting._later))


def expects(pair: Pair, room: RoomId) -> bool:
    """Whether prefill knows that decode has a room open."""
    return bool(pair.prefill.driver.look(lambda machine: machine.answers.guests.of(room)))


def given_up(pair: Pair, room: RoomId) -> bool:
    """Whether prefill remembers that decode gave up a room which prefill has yet to open."""
    return pair.prefill.driver.look(lambda machine: room in machine.meeting.lives._given_up)


def parked(pair: Pair, room: RoomId) -> bool:
    return early(pair.prefill, room) > 0


# --- decode gives up ------------------------------------------------------------------------


def cleared(handle: KVSender | KVReceiver) -> None:
    handle.clear()


def aborted(handle: KVSender | KVReceiver) -> None:
    handle.abort()


def aborted_and_cleared(handle: KVSender | KVReceiver) -> None:
    handle.abort()
    handle.clear()


ENDS = [aborted, cleared, aborted_and_cleared]


@pytest.mark.parametrize("prefill_first", [True, False])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("stage", ["opened", "initialised", "asked"])
def test_prefill_learns_that_decode_gave_up(
    stage: str, end: Callable[[KVReceiver], None], prefill_first: bool, pair: Pair, room: RoomId
) -> None:
    sender = offered(pair, room) if prefill_first else None
    receiver = pair.decode.receiver(pair.bootstrap.address, room)
    if stage != "opened":
        receiver.init()
    if stage == "asked" and not prefill_first:
        receiver.send_metadata([5])
        until(lambda: parked(pair, room))
    end(receiver)
    if sender is None:
        until(lambda: given_up(pair, room))
        sender = offered(pair, room)
    failure = failed(sender)
    assert failure.code is FailureCode.ABORTED
    assert failure.happened == f"decode aborted room {room}"
    until(lambda: sender.release_safe() and receiver.release_safe())


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("initialised", [True, False])
def test_prefill_learns_it_of_a_decode_that_has_never_paired(
    initialised: bool, end: Callable[[KVReceiver], None], pair: Pair, room: RoomId
) -> None:
    with another_decode() as decode:
        sender = offered(pair, room)
        receiver = decode.receiver(pair.bootstrap.address, room)
        if initialised:
            receiver.init()
        end(receiver)
        assert failed(sender).happened == f"decode aborted room {room}"


@pytest.mark.parametrize("prefill_first", [True, False])
def test_prefill_learns_that_decode_missed_its_deadline_before_it_asked(
    prefill_first: bool, pair: Pair, room: RoomId
) -> None:
    sender = offered(pair, room) if prefill_first else None
    receiver = pair.decode.receiver(pair.bootstrap.address, room, Deadline.after(0.2))
    receiver.init()
    assert failed(receiver).code is FailureCode.DEADLINE
    sender = sender or offered(pair, room)
    failure = failed(sender)
    assert failure.code is FailureCode.DEADLINE
    assert failure.happened == f"room {room} missed its deadline"


@pytest.mark.parametrize("prefill_first", [True, False])
def test_prefill_learns_that_decode_closed_before_it_asked(
    prefill_first: bool, pair: Pair, room: RoomId
) -> None:
    with another_decode() as decode:
        sender = offered(pair, room) if prefill_first else None
        opened(pair, room, decode)
        until(lambda: expects(pair, room))
        decode.close()
        until(lambda: not expects(pair, room))
        failure = failed(sender or offered(pair, room))
        assert failure.code in (FailureCode.SHUTDOWN, FailureCode.PEER_LOST)


@pytest.mark.parametrize(
    ("stage", "prefill_first"), [("opened", True), ("opened", False), ("asked", False), ("asked", True)]
)
def test_prefill_learns_that_decode_was_lost(
    stage: str, prefill_first: bool, pair: Pair, room: RoomId
) -> None:
    with another_decode() as decode:
        sender = pair.prefill.sender(room) if prefill_first else None
        (opened if stage == "opened" else asked)(pair, room, decode)
        until(lambda: expects(pair, room) or parked(pair, room) or (sender and sender.record.complete))
        route = Route(decode.incarnation.encode())
        pair.prefill.channel.call(lambda: pair.prefill._lose(route, "3 heartbeats are missing"))
        until(lambda: route not in {peer.route for peer in peers(pair.prefill)})
        failure = failed(sender or offered(pair, room))
        assert failure.code is FailureCode.PEER_LOST
        assert "3 heartbeats are missing" in failure.there_is


# --- prefill gives up -----------------------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("stage", ["opens later", "has it open", "was about to ask"])
def test_decode_learns_that_prefill_gave_up(
    stage: str, end: Callable[[KVSender], None], pair: Pair, room: RoomId
) -> None:
    sender = offered(pair, room)
    receiver = None
    if stage != "opens later":
        receiver = opened(pair, room)
        until(lambda: expects(pair, room))
    end(sender)
    if stage == "opens later":
        receiver = asked(pair, room)
    elif stage == "was about to ask":
        assert receiver is not None
        receiver.send_metadata([5])
    assert receiver is not None
    failure = failed(receiver)
    assert failure.code is FailureCode.ABORTED
    assert failure.happened == f"prefill aborted room {room}"
    until(receiver.release_safe)


# --- prefill is started anew ----------------------------------------------------------------


def started_anew(pair: Pair) -> PrefillManager:
    """A prefill at the address of the one that there was, which ends without a word; decode doesn't know."""
    port = int(pair.prefill.address.rpartition(":")[2])
    pair.prefill.channel.close(soon())
    anew = attrs.evolve(CONFIG, control=ControlConfig(port=port))
    return PrefillManager(select("local"), pools(), Topology(), pair.bootstrap.address, anew)


@pytest.mark.parametrize("stage", ["opened", "asked", "aborted"])
@pytest.mark.parametrize("prefill_first", [True, False])
def test_a_prefill_that_was_started_anew_learns_at_once_what_decode_gave_up_with_the_one_before(
    stage: str, prefill_first: bool
) -> None:
    with paired(CONFIG) as both:
        both.move(1, [0], [0])
        room = RoomId(2)
        receiver = (opened if stage == "opened" else asked)(both, room)
        if stage == "asked":
            until(lambda: parked(both, room))
        with started_anew(both) as anew:
            after = Pair(both.bootstrap, anew, both.decode)
            sender = offered(after, room) if prefill_first else None
            if stage == "aborted":
                receiver.abort()
            theirs = failed(receiver)
            if sender is None:
                until(lambda: given_up(after, room))
                sender = offered(after, room)
            ours = failed(sender)
            # Decode may have noticed before it aborted.
            assert ours.code in (FailureCode.PEER_LOST, *([FailureCode.ABORTED] * (stage == "aborted")))
            assert str(ours) == str(theirs)
            both.settle()
            after.move(3, [1], [1])


def prefill_process(stack: ExitStack, *ports: int) -> tuple[Child[Command, Event], WorkerServes]:
    """A prefill in a process of its own, behind these ports."""
    settings = ChaosWorkerSettings("prefill", "local", {}, 1, 300.0, False, *ports)
    child: Child[Command, Event] = Child(
        "the prefill worker", "pdcore.testing.chaos.worker", settings, decode_event
    )
    stack.enter_context(child)
    return child, child.expect(WorkerServes, soon(), "did not start")


def test_a_prefill_process_that_was_started_anew_learns_it_with_the_next_request() -> None:
    memory = WatchedMemory(LAYOUT, SLOTS).pools
    with ExitStack() as stack:
        first, ports = prefill_process(stack)
        decode = stack.enter_context(DecodeManager(select("local"), memory, Topology(), CONFIG))

        def wants(room: int) -> KVReceiver:
            receiver = decode.receiver(f"127.0.0.1:{ports.bootstrap_port}", RoomId(room))
            receiver.init()
            receiver.send_metadata([room], room)
            return receiver

        first.tell(BeginRoom(1, 1))
        assert wants(1).wait(soon()) is KVPoll.SUCCESS
        lost = wants(2)
        first.crash()
        assert failed(lost).code is FailureCode.PEER_LOST
        anew, _ = prefill_process(stack, ports.control_port, ports.bootstrap_port)
        anew.tell(BeginRoom(2, 1))
        anew.tell(BeginRoom(3, 1))
        assert wants(3).wait(soon()) is KVPoll.SUCCESS
        over = [anew.expect(RoomOver, soon(), "did not end its room") for _ in range(2)]
        assert {one.room: one.code for one in over} == {2: FailureCode.PEER_LOST.value, 3: ""}


def test_decode_learns_that_prefill_missed_its_deadline_before_decode_asked(pair: Pair, room: RoomId) -> None:
    sender = pair.prefill.sender(room, Deadline.after(0.2))
    assert failed(sender).code is FailureCode.DEADLINE
    sender.clear()
    failure = failed(asked(pair, room))
    assert failure.code is FailureCode.DEADLINE
    assert "prefill ended the room" in failure.there_is


@pytest.mark.parametrize("stage", ["opened", "parked"])
def test_decode_learns_that_prefill_closed(stage: str) -> None:
    with paired(CONFIG) as both:
        both.move(1, [0], [0])
        receiver = (opened if stage == "opened" else asked)(both, RoomId(2))
        until(lambda: parked(both, RoomId(2)) or expects(both, RoomId(2)))
        both.prefill.close()
        code = FailureCode.SHUTDOWN if stage == "parked" else FailureCode.PEER_LOST
        assert failed(receiver).code is code


# --- who else asks --------------------------------------------------------------------------


@pytest.mark.parametrize("asks", [opened, asked])
def test_a_second_worker_is_told_who_has_the_room(
    asks: Callable[[Pair, RoomId, DecodeManager], KVReceiver], pair: Pair, room: RoomId
) -> None:
    sender = pair.prefill.sender(room)
    first = asked(pair, room)
    until(lambda: sender.poll() is KVPoll.WAITING_FOR_INPUT)
    with another_decode() as decode:
        failure = failed(asks(pair, room, decode))
    assert failure.code is FailureCode.ABORTED
    assert failure.happened == f"room {room} is promised to another decode worker"
    assert pair.decode.incarnation[:8] in failure.there_is
    sender.init(1)
    sender.send([3])
    finish(sender, first)
    assert same_pages(pair.prefill.pools, [3], pair.decode.pools, [5])


@pytest.mark.parametrize("is_cleared", [True, False])
def test_a_second_worker_is_told_who_got_the_room(is_cleared: bool, pair: Pair, room: RoomId) -> None:
    with another_decode() as decode:
        early = decode.receiver(pair.bootstrap.address, room)
        early.record.opened_at -= 10.0  # well before the room ended, however slow this machine is
        sender, first = offered(pair, room), asked(pair, room)
        for handle in (sender, first):
            assert handle.wait(soon()) is KVPoll.SUCCESS
        if is_cleared:
            sender.clear()
        early.init()
        early.send_metadata([7])
        failure = failed(early)
        assert failure.code is FailureCode.ABORTED
        assert failure.happened == f"room {room} went to another decode worker"
        assert pair.decode.incarnation[:8] in failure.there_is
        if not is_cleared:
            early.clear()
            assert failed(asked(pair, room, decode)).happened == failure.happened


def test_a_worker_may_have_a_room_that_another_got_once_prefill_clears_it(pair: Pair, room: RoomId) -> None:
    sender, first = offered(pair, room), asked(pair, room)
    for handle in (sender, first):
        assert handle.wait(soon()) is KVPoll.SUCCESS
    with another_decode() as decode:
        receiver = asked(pair, room, decode)
        until(lambda: parked(pair, room))
        sender.clear()
        finish(offered(pair, room), receiver)
        assert same_pages(pair.prefill.pools, [3], decode.pools, [5])


def test_a_request_that_is_repeated_while_it_is_parked_stays(pair: Pair, room: RoomId) -> None:
    receiver = asked(pair, room)
    until(lambda: parked(pair, room))
    (destination,) = pair.prefill.driver.look(lambda machine: machine.answers.early.of(room))
    pair.prefill.feed(s.Heard(destination.peer.route, attrs.evolve(destination.wanted)))
    assert early(pair.prefill, room) == 1
    finish(offered(pair, room), receiver)


def test_the_next_request_of_a_rank_whose_abort_was_lost_ends_the_life_before(
    pair: Pair, room: RoomId
) -> None:
    sender = pair.prefill.sender(room)
    first = asked(pair, room)
    until(lambda: sender.poll() is KVPoll.WAITING_FOR_INPUT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair.decode.channel, "post", lambda *_: None)  # and prefill isn't told
        first.clear()
    second = asked(pair, room, page=6)
    assert failed(sender).there_is.startswith("it uses the room id for another request by now")
    sender.clear()
    finish(offered(pair, room), second)


# --- ids that are used again ----------------------------------------------------------------


def test_a_life_that_decode_gave_up_does_not_hurt_the_next(pair: Pair, room: RoomId) -> None:
    for _ in range(3):
        sender, receiver = offered(pair, room), opened(pair, room)
        receiver.abort()
        failed(sender)
        for handle in (receiver, sender):
            handle.clear()
    finish(offered(pair, room), asked(pair, room))


def test_a_life_that_both_gave_up_at_once_does_not_hurt_the_next(pair: Pair, room: RoomId) -> None:
    for _ in range(5):
        sender, receiver = offered(pair, room), opened(pair, room)
        sender.clear()
        receiver.clear()
    finish(offered(pair, room), asked(pair, room))


def test_a_life_that_prefill_gave_up_does_not_hurt_the_next(pair: Pair, room: RoomId) -> None:
    for _ in range(2):
        sender, receiver = offered(pair, room), opened(pair, room)
        sender.clear()
        failed(receiver)
        receiver.clear()
    receiver = asked(pair, room)
    until(lambda: parked(pair, room))
    finish(offered(pair, room), receiver)


def test_a_life_that_decode_gave_up_before_prefill_opened_it_does_not_hurt_those_after(
    pair: Pair, room: RoomId
) -> None:
    for _ in range(3):
        receiver = opened(pair, room)
        receiver.clear()
        until(lambda: given_up(pair, room))
        sender = offered(pair, room)
        failed(sender)
        sender.clear()
    receiver = asked(pair, room)
    until(lambda: parked(pair, room))
    finish(offered(pair, room), receiver)


def test_a_life_that_only_prefill_had_does_not_hurt_one_in_which_decode_comes_first(
    pair: Pair, room: RoomId
) -> None:
    for _ in range(2):
        offered(pair, room).clear()
    receiver = asked(pair, room)
    until(lambda: parked(pair, room))
    finish(offered(pair, room), receiver)


def test_a_life_that_only_decode_had_does_not_hurt_one_in_which_prefill_comes_first(
    pair: Pair, room: RoomId
) -> None:
    let_go(pair, room)
    finish(offered(pair, room), asked(pair, room))


@pytest.mark.parametrize("by_decode", [True, False])
def test_a_life_that_one_side_had_does_not_keep_what_the_next_one_ends_of(
    by_decode: bool, pair: Pair, room: RoomId
) -> None:
    if by_decode:
        offered(pair, room).clear()
        opened(pair, room).clear()
        waits: KVSender | KVReceiver = offered(pair, room)
    else:
        let_go(pair, room)
        offered(pair, room).clear()
        waits = asked(pair, room)
    failed(waits)
    waits.clear()


def test_a_request_that_was_refused_is_not_kept_for_the_next_life(pair: Pair, room: RoomId) -> None:
    offered(pair, room).clear()
    receiver = opened(pair, room)
    until(lambda: later(pair))  # prefill heard that it is open, and waits
    receiver.send_metadata([5])
    until(lambda: parked(pair, room))
    failed(receiver)
    assert not parked(pair, room)
    receiver.clear()
    receiver = asked(pair, room)
    finish(offered(pair, room), receiver)


def test_decode_that_gave_up_may_ask_again_before_prefill_opens_the_room(pair: Pair, room: RoomId) -> None:
    opened(pair, room).clear()
    receiver = asked(pair, room)
    until(lambda: parked(pair, room))
    finish(offered(pair, room), receiver)


def test_what_is_remembered_is_bounded_in_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdcore.protocol.send.lives.SECONDS", 0.2)
    one, other = RoomId(next(ROOMS)), RoomId(next(ROOMS))
    opened(pair, one).clear()
    offered(pair, other).clear()

    def remembers(machine: Machine) -> bool:
        lives = machine.meeting.lives
        return bool(lives._given_up or lives._cleared)

    until(lambda: not pair.prefill.driver.look(remembers))
    receiver = asked(pair, other)
    until(lambda: parked(pair, other))
    finish(offered(pair, other), receiver)


# --- groups ---------------------------------------------------------------------------------

SHAPES = {
    "two to one": (Model(), ranks(tp=2), ranks()),
    "one to two": (Model(), ranks(), ranks(tp=2)),
    "with a dummy": (Model(kv_heads=0), ranks(tp=2), ranks()),
}


@contextmanager
def paired_groups(shape: str) -> Iterator[Groups]:
    with groups(*SHAPES[shape], cfg=CONFIG) as both:
        both.meet()
        yield both


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Iterator[Groups]:
    with paired_groups(request.param) as both:
        yield both


@pytest.fixture(scope="module")
def one_to_two() -> Iterator[Groups]:
    with paired_groups("one to two") as both:
        yield both


@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize("asked_before", [0, 1])
@pytest.mark.parametrize("member", [0, -1])
def test_one_member_that_ends_ends_all_whom_it_meets(
    side: str, asked_before: int, member: int, room: RoomId, shape: Groups
) -> None:
    senders, receivers = shape.open(room)
    handles: list[KVSender | KVReceiver] = [*senders, *receivers]
    for receiver in receivers[:asked_before]:
        receiver.send_metadata([1])
    chosen = senders if side == "prefill" else receivers
    chosen[member].abort()
    for handle in handles:
        failure = failed(handle)
        assert failure.happened == f"{side} aborted room {room}"
    until(lambda: all(handle.release_safe() for handle in handles))
    for handle in handles:
        handle.clear()


@pytest.mark.parametrize("members", [(0, 1), (1, 0)])
def test_ranks_that_ask_after_prefill_has_cleared_are_all_told(
    members: tuple[int, int], one_to_two: Groups, room: RoomId
) -> None:
    one_to_two.prefill[0].sender(room).clear()
    receivers = [manager.receiver(one_to_two.bootstrap, room) for manager in one_to_two.decode]
    for member in members:
        receivers[member].init()
        receivers[member].send_metadata([1])
        assert failed(receivers[member]).happened == f"prefill aborted room {room}"


def test_a_group_that_fails_to_pair_tells_those_who_paired() -> None:
    with groups(Model(), ranks(tp=2), ranks(), cfg=CONFIG) as both:
        stuck = both.prefill[1]
        stuck._links.connect = lambda do: None  # type: ignore[method-assign]  # it never answers
        senders, receivers = both.open(7)
        receivers[0].abort()
        assert failed(senders[0]).happened == "decode aborted room 7"
        assert senders[1].poll() is KVPoll.BOOTSTRAPPING


# --- pairings that are refused --------------------------------------------------------------


@pytest.mark.parametrize("prefill_first", [True, False])
def test_a_room_ends_on_both_sides_if_the_two_do_not_fit(
    prefill_first: bool, pair: Pair, room: RoomId
) -> None:
    turned = attrs.evolve(MHA, order=PageOrder.HEAD_TOKEN)
    with DecodeManager(select("local"), pools(turned), Topology(), CONFIG) as stranger:
        for again in (room, RoomId(next(ROOMS))):  # each pairs anew, in vain
            sender = offered(pair, again) if prefill_first else None
            receiver = asked(pair, again, stranger)
            failed(receiver)
            if sender is None:
                until(lambda: given_up(pair, again))  # noqa: B023 - used at once
                sender = offered(pair, again)
            for handle in (sender, receiver):
                failure = failed(handle)
                assert failure.code is FailureCode.INCOMPATIBLE
                assert "prefill (token, head), decode (head, token)" in failure.there_is
                until(handle.release_safe)
    pair.move(next(ROOMS), [1], [1])


def test_of_many_rooms_at_once_that_are_refused_none_is_left_out(pair: Pair) -> None:
    turned = attrs.evolve(MHA, order=PageOrder.HEAD_TOKEN)
    with DecodeManager(select("local"), pools(turned), Topology(), CONFIG) as stranger:
        rooms = [RoomId(next(ROOMS)) for _ in range(30)]
        senders = [offered(pair, room) for room in rooms]
        failed(*(asked(pair, room, stranger, page) for page, room in enumerate(rooms)), *senders)
        assert {sender.failure().code for sender in senders} == {FailureCode.INCOMPATIBLE}  # type: ignore[union-attr]  # they failed
        source = next(iter(stranger.channel._sockets._dialled))
        until(lambda: source not in stranger.channel._sockets._dialled)


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_a_room_ends_on_both_sides_if_an_engine_does_not_take_its_peer(
    side: str, room: RoomId, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> None:
        raise ZeroDivisionError("somebody's code")

    with paired(CONFIG) as pair:
        engine = pair.prefill.engine if side == "prefill" else pair.decode.engine
        monkeypatch.setattr(engine, "connect" if side == "prefill" else "admit", broken)
        sender, receiver = offered(pair, room), asked(pair, room)
        for handle in (sender, receiver):
            failure = failed(handle)
            assert failure.code is FailureCode.ENGINE
            assert "ZeroDivisionError" in failure.there_is


def test_all_ranks_of_two_groups_that_cannot_be_paired_learn_it() -> None:
    with groups(Model(), ranks(tp=4), ranks(tp=3), cfg=CONFIG) as both:
        senders, receivers = both.open(7)
        handles: list[KVSender | KVReceiver] = [*senders, *receivers]
        for handle in handles:
            failure = failed(handle)
            assert failure.code is FailureCode.INCOMPATIBLE
            assert "topology.tp_size: prefill 4, decode 3" in failure.there_is


def test_who_was_refused_ends_no_room_that_another_has(pair: Pair, room: RoomId) -> None:
    turned = attrs.evolve(MHA, order=PageOrder.HEAD_TOKEN)
    receiver = asked(pair, room)
    sender = pair.prefill.sender(room)
    sender.init(1)
    until(lambda: sender.poll() is not KVPoll.BOOTSTRAPPING)
    with DecodeManager(select("local"), pools(turned), Topology(), CONFIG) as stranger:
        failed(asked(pair, room, stranger))
        sender.send([3])
        finish(sender, receiver)


def test_a_worker_that_gives_up_takes_the_room_from_no_other_that_has_asked(pair: Pair, room: RoomId) -> None:
    with another_decode() as decode:
        guest = decode.receiver(pair.bootstrap.address, room)
        guest.init()
        until(lambda: guest.poll() is KVPoll.WAITING_FOR_INPUT)
        receiver = asked(pair, room)
        until(lambda: parked(pair, room))
        guest.abort()
        asked(pair, RoomId(room + 1), decode)  # behind the word on the same connection
        until(lambda: parked(pair, RoomId(room + 1)))
        sender = pair.prefill.sender(room)
        assert sender.wait(Deadline.after(2 * DOUBT)) is KVPoll.WAITING_FOR_INPUT, sender.failure()
        sender.init(1)
        sender.send([3])
        finish(sender, receiver)
