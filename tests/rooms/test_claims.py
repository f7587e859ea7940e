"""One page, one owner: what a request names on the decode side belongs to no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from pair import MHA, Pair, config, finish, paired, peers, pools, soon, until

from pdcore import (
    Deadline,
    DecodeManager,
    KVPoll,
    KVReceiver,
    KVSender,
    PDCoreError,
    PlanError,
    Pools,
    RoomError,
    RoomId,
    StateBuffer,
    StateComponent,
    Topology,
    select,
)
from pdcore.contract.outcome import Quiescence
from pdcore.protocol.stimuli import WriterSilent
from pdcore.rooms.claims import Claims

STATE = [
    StateComponent("mamba", 8, (StateBuffer("conv", 64),)),
    StateComponent("swa", 16, (StateBuffer("k", 32),)),
]


def with_state() -> Pools:
    return pools(state=STATE)


@pytest.fixture(scope="module")
def both() -> Iterator[Pair]:
    with paired(source=with_state(), target=with_state()) as pair:
        pair.prefill.pools.aux.set(0, RoomId(1), {})  # type: ignore[union-attr]  # it has aux
        sender, receiver = pair.open(1)
        sender.init(1, 0)
        receiver.send_metadata([1], 0, [[0], []])
        sender.send([1], [[0], []])
        finish(sender, receiver)
        yield pair


_rooms = iter(range(100, 10_000))


class Given:
    """Rooms of one test, which are over when it ends."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.rooms: list[tuple[KVSender, KVReceiver]] = []

    def room(self) -> KVReceiver:
        self.rooms.append(self.pair.open(next(_rooms)))
        return self.rooms[-1][1]

    def end(self) -> None:
        for sender, receiver in self.rooms:
            receiver.clear()
            sender.clear()
        until_safe(*(receiver for _, receiver in self.rooms))


def until_safe(*receivers: KVReceiver) -> None:
    deadline = soon()
    while not all(receiver.release_safe() for receiver in receivers):
        assert not deadline.expired
        time.sleep(0.005)


@pytest.fixture
def given(both: Pair) -> Iterator[Given]:
    rooms = Given(both)
    yield rooms
    rooms.end()
    assert len(both.decode.claims) == 0


def refusal(action: Callable[[], None], kind: type[PDCoreError]) -> PDCoreError:
    with pytest.raises(kind) as caught:
        action()
    return caught.value


# Twice in one request


@pytest.mark.parametrize(
    ("named", "happened"),
    [
        (([5, 5, 6], 0, [[1], [2]]), "page 5 occurs twice in room {}"),
        (([6, 7, 5, 1, 0, 7], 0, [[1], [2]]), "page 7 occurs twice in room {}"),
        ((np.array([9, 9], np.uint8), 0, [[1], [2]]), "page 9 occurs twice in room {}"),
        (([5], 0, [[1, 1], [2]]), "item of state 'mamba' 1 occurs twice in room {}"),
        (([5], 0, [[1], [3, 2, 3]]), "item of state 'swa' 3 occurs twice in room {}"),
    ],
)
def test_what_occurs_twice_in_a_request_is_refused_and_named(
    given: Given, named: tuple[Any, int, Any], happened: str
) -> None:
    receiver = given.room()
    error = refusal(lambda: receiver.send_metadata(*named), PlanError)
    assert error.happened == happened.format(receiver.room)
    assert "more than once" in error.there_is
    assert error.to_do == "name each once: what is written there first would be lost"


def test_a_room_whose_list_was_refused_goes_on_with_the_right_one(both: Pair) -> None:
    sender, receiver = both.open(2)
    for wrong in ([5, 5], [5, 64], [-1, 5]):
        with pytest.raises(PlanError):
            receiver.send_metadata(wrong, 3, [[1], [2]])
        assert receiver.poll() is not KVPoll.FAILED
    assert len(both.decode.claims) == 0
    assert both.prefill.pools.aux
    both.prefill.pools.aux.set(0, receiver.room, {})
    sender.init(2, 0)
    receiver.send_metadata([5, 6], 3, [[1], [2]])
    sender.send([5, 6], [[1], [2]])
    finish(sender, receiver)


@pytest.mark.parametrize("lists", [[[8], [0]], [[0], [16]], [[-1], [0]], [[0], [2**40]]])
def test_state_items_outside_their_component_are_refused_before_anything_is_told(
    given: Given, lists: list[list[int]]
) -> None:
    receiver = given.room()
    error = refusal(lambda: receiver.send_metadata([5], 0, lists), PlanError)
    assert "are outside the pool" in error.happened
    assert "items of state" in error.happened
    receiver.send_metadata([5], 0, [[0], [0]])


# In two rooms


@pytest.mark.parametrize(
    ("then", "what"),
    [
        (([5], 1, [[1], [1]]), "page 5"),
        (([40, 4, 41], 1, [[1], [1]]), "page 4"),
        (([40], 0, [[1], [1]]), "aux slot 0"),
        (([40], 1, [[0], [1]]), "item of state 'mamba' 0"),
        (([40], 1, [[1], [9, 3]]), "item of state 'swa' 3"),
        (([], 0, [[], []]), "aux slot 0"),
    ],
)
def test_what_another_open_room_has_is_refused_and_the_room_is_named(
    given: Given, then: tuple[Any, int, Any], what: str
) -> None:
    first, second = given.room(), given.room()
    first.send_metadata([4, 5, 6], 0, [[0], [2, 3]])
    error = refusal(lambda: second.send_metadata(*then), RoomError)
    assert error.happened == f"{what} of room {second.room} belongs to room {first.room}"
    assert f"room {first.room} is TRANSFERRING" in error.there_is
    assert error.to_do.endswith(f"use them again once release_safe() of room {first.room} is true")
    second.send_metadata([40], 1, [[1], [1]])


def test_rooms_that_share_nothing_go_on_side_by_side(given: Given) -> None:
    for n in range(8):
        given.room().send_metadata([n], n, [[n], [n, n + 8]])


def test_the_aux_row_of_who_has_the_slot_stays(given: Given) -> None:
    first, second = given.room(), given.room()
    first.send_metadata([4], 0, [[0], [0]])
    aux = given.pair.decode.pools.aux
    assert aux is not None
    aux.set(0, first.room, {"first_token": 5})  # as prefill would
    with pytest.raises(RoomError):
        second.send_metadata([5], 0, [[1], [1]])
    assert aux.get(0, first.room)["first_token"] == 5


# Given back


def test_pages_are_free_once_their_room_has_succeeded(both: Pair) -> None:
    aux = both.prefill.pools.aux
    assert aux is not None
    rooms = [both.open(room) for room in range(10, 14)]
    for sender, receiver in rooms:
        aux.set(0, receiver.room, {})
        sender.init(2, 0)
        receiver.send_metadata([7, 8], 0, [[3], [4]])
        sender.send([1, 2], [[0], [0]])
        assert receiver.wait(soon()) is KVPoll.SUCCESS
        # Neither cleared nor asked: who sees SUCCESS may use the pages.
    assert len(both.decode.claims) <= 1
    for sender, receiver in rooms:
        assert sender.wait(soon()) is KVPoll.SUCCESS
        sender.clear()
        receiver.clear()
    assert len(both.decode.claims) == 0


@pytest.mark.parametrize("end", ["abort", "clear", "deadline"])
def test_pages_of_a_room_that_failed_are_free_when_they_are_safe_and_not_before(
    given: Given, end: str
) -> None:
    first, second = given.room(), given.room()
    first.send_metadata([4, 5], 0, [[0], [0]])
    decode, record = given.pair.decode, first.record
    until(lambda: record.writers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "_mute", True)  # prefill hears nothing
        if end == "deadline":
            record.deadline = time.monotonic()
            decode.driver.look(lambda machine: machine._turn.expect(record))
            assert first.wait(soon()) is KVPoll.FAILED
        else:
            getattr(first, end)()
    assert not first.release_safe()
    error = refusal(lambda: second.send_metadata([5], 1, [[1], [1]]), RoomError)
    assert f"room {first.room} is FAILED, and may still be written to" in error.there_is
    (source,) = peers(decode)
    decode.feed(WriterSilent(source.identity))
    second.send_metadata([5], 1, [[1], [1]])


def test_a_room_that_failed_before_it_named_anything_holds_nothing(given: Given) -> None:
    receiver = given.room()
    receiver.abort()
    receiver.send_metadata([5], 0, [[0], [0]])
    assert len(given.pair.decode.claims) == 0


def test_pages_of_a_prefill_that_is_gone_stay_taken_until_they_are_safe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with paired() as pair:
        pair.move(1, [1], [1])
        _, first = pair.open(2)
        first.send_metadata([5])
        (source,) = peers(pair.decode)
        proven = threading.Event()
        revoke = pair.decode.engine.revoke

        def late(endpoint: bytes, deadline: Deadline) -> Quiescence:
            proven.wait(30)
            return revoke(endpoint, soon())

        monkeypatch.setattr(pair.decode.engine, "revoke", late)
        try:
            pair.decode.channel.call(lambda: pair.decode._lose(source.route, "a test"))
            assert first.wait(soon()) is KVPoll.FAILED
            _, second = pair.open(3)
            with pytest.raises(RoomError, match="page 5 of room 3 belongs to room 2"):
                second.send_metadata([5])
        finally:
            proven.set()
        until_safe(first)
        second.send_metadata([5])


def test_pages_of_a_closed_manager_may_be_used_by_the_next_one_over_the_same_memory() -> None:
    target = pools()
    for _ in range(2):
        with paired(target=target) as pair:
            pair.move(1, [1], [1])
            _, receiver = pair.open(2)
            receiver.send_metadata([5])


def test_managers_that_share_their_pools_share_the_owners() -> None:
    target = pools()
    with paired(target=target) as pair, DecodeManager(select("local"), target, Topology(), config()) as other:
        pair.move(1, [1], [1])
        _, first = pair.open(2)
        first.send_metadata([5], 0)
        second = other.receiver(pair.bootstrap.address, RoomId(3))
        second.init()
        with pytest.raises(RoomError, match="page 5 of room 3 belongs to room 2"):
            second.send_metadata([4, 5], 1)
        with pytest.raises(RoomError, match="aux slot 0 of room 3 belongs to room 2"):
            second.send_metadata([4], 0)
        first.abort()
        until_safe(first)
        second.send_metadata([4, 5], 0)
        second.clear()
        until_safe(second)
        assert len(other.claims) == 0
    assert Claims.of(pools()) is not pair.decode.claims


# By themselves


class Room:
    def __init__(self, room: int) -> None:
        self.room = RoomId(room)
        self.safe = False

    def poll(self) -> KVPoll:
        return KVPoll.TRANSFERRING

    def release_safe(self) -> bool:
        return self.safe


def i64(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, np.int64)


def test_claims_agree_with_a_plain_dictionary_over_random_orders() -> None:
    rng = np.random.default_rng(7)
    claims = Claims(Pools.allocate(MHA))
    owner: dict[int, Room] = {}
    held: dict[int, tuple[Room, Any]] = {}
    blamed: list[tuple[int, set[RoomId]]] = []
    for number in range(2_000):
        room, wanted = Room(number), rng.integers(0, MHA.num_pages, rng.integers(0, 8))
        blockers = {owner[page].room for page in wanted.tolist() if page in owner and not owner[page].safe}
        twice = len(set(wanted.tolist())) < len(wanted)
        try:
            claim = claims.take(room, wanted, None, ())
        except PlanError:
            assert twice
        except RoomError as refused:
            blamed.append((int(refused.happened.rsplit(" ", 1)[1]), blockers))
        else:
            assert not twice
            assert not blockers
            owner |= dict.fromkeys(wanted.tolist(), room)
            held[number] = room, claim
        if held and rng.random() < 0.5:
            ending, claim = held.pop(int(rng.choice(list(held))))
            ending.safe = True
            if rng.random() < 0.5:  # else it is found out when somebody wants them
                claims.free(claim)
                claims.free(claim)
            owner = {page: who for page, who in owner.items() if who is not ending}
    for room, claim in held.values():
        room.safe = True
        claims.free(claim)
    claims.take(Room(1), np.arange(MHA.num_pages), None, ())
    assert blamed
    assert all(room in blockers for room, blockers in blamed)


def test_of_many_threads_that_want_a_page_one_gets_it() -> None:
    claims = Claims(Pools.allocate(MHA))
    together, got = threading.Barrier(4), []

    def take(room: int) -> None:
        for page in range(MHA.num_pages - 1):
            together.wait(30)
            with suppress(RoomError):
                got.append((page, claims.take(Room(room), i64(page, MHA.num_pages - 1), None, ())))
            together.wait(30)
            if room == 0:
                claims.free(got[-1][1])

    threads = [threading.Thread(target=take, args=(room,)) for room in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [page for page, _ in got] == list(range(MHA.num_pages - 1))
    assert len(claims) == 0
