"""Decode has no use for a room and says so: both sides end at once, and nothing went wrong.

All deadlines are 300 s: nobody who waits for one ends in time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from groups import Groups, Model, groups, ranks
from pair import Pair, config, paired, pools, soon, until

from pdcore import (
    BootstrapServer,
    DecodeManager,
    DPChoice,
    FailureCode,
    KVPoll,
    KVReceiver,
    KVSender,
    PrefillManager,
    RoomId,
    Topology,
    select,
)

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


def declined(*handles: KVSender | KVReceiver, reason: str = "it holds all") -> None:
    """Wait until rooms were declined, and all their pages are free; clear them."""
    for handle in handles:
        assert handle.wait(soon()) is KVPoll.FAILED
        failure = handle.failure()
        assert failure is not None
        assert failure.code is FailureCode.DECLINED
        assert not failure.code.is_error
        assert failure.happened == f"decode declined room {handle.room}"
        assert failure.there_is.startswith(reason)
        assert failure.to_do == "nothing: no page is awaited there, so prefill may free its own"
    for handle in handles:
        until(handle.release_safe)
        handle.clear()


def offered(pair: Pair, room: RoomId) -> KVSender:
    """A room of prefill with its chunks held until decode comes."""
    sender = pair.prefill.sender(room)
    sender.init(3)
    sender.send([3])
    sender.send([4])
    return sender


def kept(manager: PrefillManager, room: RoomId) -> bool:
    """Whether prefill knows that decode declined what is not open there."""
    return manager.driver.look(lambda machine: room in machine.meeting.lives._given_up)


def in_one_call(pair: Pair, room: RoomId) -> None:
    assert pair.decode.decline(pair.bootstrap.address, room, "it holds all")


def before_init(pair: Pair, room: RoomId) -> None:
    receiver = pair.decode.receiver(pair.bootstrap.address, room)
    receiver.decline("it holds all")
    receiver.init()  # a scheduler that had it in its queue yet
    receiver.send_metadata([5])
    declined(receiver)


def after_init(pair: Pair, room: RoomId) -> None:
    receiver = pair.decode.receiver(pair.bootstrap.address, room)
    receiver.init()
    receiver.decline("it holds all")
    declined(receiver)


def after_metadata(pair: Pair, room: RoomId) -> None:
    receiver = pair.decode.receiver(pair.bootstrap.address, room)
    receiver.init()
    receiver.send_metadata([5, 6, 7])
    receiver.decline("it holds all")
    declined(receiver)


WAYS = [in_one_call, before_init, after_init, after_metadata]


@pytest.mark.parametrize("way", WAYS)
def test_prefill_that_holds_its_chunks_for_decode_is_free_at_once(
    pair: Pair, room: RoomId, way: Callable[[Pair, RoomId], None]
) -> None:
    sender = offered(pair, room)
    way(pair, room)
    if way is not after_metadata:  # else it may have got all
        declined(sender)
    else:
        until(lambda: sender.poll().terminal and sender.release_safe())
        sender.clear()
    pair.move(room, [7], [8])


def test_prefill_that_opens_the_room_later_learns_it_as_it_does(pair: Pair) -> None:
    rooms = [RoomId(next(ROOMS)) for _ in WAYS]
    for way, room in zip(WAYS, rooms, strict=True):
        way(pair, room)
    until(lambda: all(kept(pair.prefill, room) for room in rooms))
    declined(*map(pair.prefill.sender, rooms))
    for room in rooms:
        pair.move(room, [7], [8])


def test_prefill_that_has_met_decode_and_sent_nothing_is_free_at_once(pair: Pair, room: RoomId) -> None:
    sender, receiver = pair.open(room)
    receiver.send_metadata([5, 6])
    until(lambda: sender.poll() is KVPoll.WAITING_FOR_INPUT)
    receiver.decline()
    declined(sender, receiver, reason="it gave no reason")


def test_declining_what_has_ended_changes_nothing(pair: Pair, room: RoomId) -> None:
    sender, receiver = pair.open(room)
    sender.init(1)
    receiver.send_metadata([5])
    sender.send([3])
    assert receiver.wait(soon()) is KVPoll.SUCCESS
    receiver.decline("too late")
    assert receiver.poll() is KVPoll.SUCCESS
    assert sender.wait(soon()) is KVPoll.SUCCESS
    sender.clear()
    receiver.clear()
    assert pair.decode.busy() == 0


@pytest.mark.parametrize("known", [True, False])
def test_a_decode_that_has_never_paired_declines(pair: Pair, room: RoomId, known: bool) -> None:
    sender = offered(pair, room) if known else None
    with DecodeManager(select("local"), pools(), Topology(), CONFIG) as decode:
        assert decode.decline(pair.bootstrap.address, room, "it holds all")
        if sender is None:
            until(lambda: kept(pair.prefill, room))
        declined(sender or pair.prefill.sender(room))


def test_a_prefill_that_is_not_there_yet_is_told_once_it_is(room: RoomId) -> None:
    backend = select("local")
    with (
        BootstrapServer() as bootstrap,
        DecodeManager(backend, pools(), Topology(), CONFIG) as decode,
    ):
        receiver = decode.receiver(bootstrap.address, room)
        receiver.decline("it holds all")
        declined(receiver)
        assert decode.decline(bootstrap.address, RoomId(room + 10_000), "it holds all")
        with PrefillManager(backend, pools(), Topology(), bootstrap.address, CONFIG) as prefill:
            rooms = [room, RoomId(room + 10_000)]
            until(lambda: all(kept(prefill, one) for one in rooms))
            declined(*map(prefill.sender, rooms))


def test_a_prefill_that_never_comes_keeps_nobody(room: RoomId) -> None:
    with DecodeManager(select("local"), pools(), Topology(), CONFIG) as decode:
        assert decode.decline("127.0.0.1:9", room, "it holds all")
        receiver = decode.receiver("127.0.0.1:9", room)
        receiver.init()
        receiver.decline("it holds all")
        declined(receiver)


def test_what_cannot_be_declined_is_told_by_false_and_in_the_log(
    pair: Pair, room: RoomId, caplog: pytest.LogCaptureFixture
) -> None:
    sender, receiver = pair.open(room)
    assert not pair.decode.decline(pair.bootstrap.address, room)
    assert f"room {room} cannot be declined: room {room} is open already" in caplog.text
    assert not pair.decode.decline("nowhere", RoomId(room + 1))
    assert not pair.decode.decline(pair.bootstrap.address, RoomId(-1))
    assert not pair.decode.decline(pair.bootstrap.address, RoomId(room + 1), prefill_dp_rank=-3)
    sender.init(1)
    receiver.send_metadata([5])
    sender.send([3])
    assert receiver.wait(soon()) is KVPoll.SUCCESS
    assert sender.wait(soon()) is KVPoll.SUCCESS
    sender.clear()
    receiver.clear()
    with DecodeManager(select("local"), pools(), Topology(), CONFIG) as closed:
        closed.close()
        assert not closed.decline(pair.bootstrap.address, room)
        assert "the decode manager was closed" in caplog.text


@pytest.fixture(scope="module", params=["one to two", "two to one"])
def shape(request: pytest.FixtureRequest) -> Iterator[Groups]:
    sides = (ranks(), ranks(tp=2)) if request.param == "one to two" else (ranks(tp=2), ranks())
    with groups(Model(), *sides, cfg=CONFIG) as both:
        both.meet()
        yield both


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("rank", [0, -1])
def test_one_decode_rank_declines_for_all(shape: Groups, room: RoomId, rank: int, asked: bool) -> None:
    senders, receivers = shape.open(room)
    for sender in senders:
        sender.init(1)
        sender.send([0])
    others = [r for r in receivers if r is not receivers[rank]]
    for receiver in others if asked else []:
        receiver.send_metadata([1])
    receivers[rank].decline("it holds all")
    declined(*senders, *receivers)


@pytest.mark.parametrize("prefill_first", [True, False])
def test_all_decode_ranks_decline_in_one_call_each(shape: Groups, room: RoomId, prefill_first: bool) -> None:
    senders = [m.sender(room) for m in shape.prefill] if prefill_first else []
    for manager in shape.decode:
        assert manager.decline(shape.bootstrap, room, "it holds all")
    if not prefill_first:
        until(lambda: all(kept(m, room) for m in shape.prefill))
        senders = [m.sender(room) for m in shape.prefill]
    declined(*senders)


def test_the_replica_that_declining_is_told_to_can_be_chosen(room: RoomId) -> None:
    replicas = [*ranks(dp_size=2, dp_rank=0), *ranks(dp_size=2, dp_rank=1)]
    with groups(Model(), replicas, ranks(), cfg=CONFIG) as both:
        by_room = both.prefill[room % 2].sender(room)
        other = both.prefill[1 - room % 2].sender(room)
        chosen = other.record.status
        assert both.decode[0].decline(both.bootstrap, room, "it holds all", 1 - room % 2)
        declined(other)
        assert by_room.poll() is chosen
        assert both.decode[0].decline(both.bootstrap, room, "it holds all", DPChoice.BY_ROOM)
        declined(by_room)
