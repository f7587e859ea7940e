from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pdcore.errors import FailureCode, KVTransferError, RoomError
from pdcore.model import Deadline, KVPoll, RoomId
from pdcore.rooms.status import Awaited, Room, RoomTable, may_follow

OPEN = (KVPoll.BOOTSTRAPPING, KVPoll.WAITING_FOR_INPUT, KVPoll.TRANSFERRING)
ALLOWED = {
    *itertools.combinations((*OPEN, KVPoll.SUCCESS), 2),
    *((state, KVPoll.FAILED) for state in OPEN),
}
PAIRS = list(itertools.product(KVPoll, KVPoll))
FAILURE = KVTransferError(FailureCode.ENGINE, "it broke", "1 of 2", "mend it")


class OwnClock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def table() -> RoomTable:
    return RoomTable()


def soon() -> Deadline:
    return Deadline.after(60)


def ended_in(table: RoomTable, deadline: Deadline) -> list[RoomId]:
    """Wait for rooms of which none misses its deadline."""
    return table.finished(deadline, lambda overdue: None)


def past() -> Deadline:
    return Deadline(0.0)


def opened(table: RoomTable, *rooms: int) -> list[Room]:
    return [table.open(RoomId(room), soon()) for room in rooms]


# The rules


@pytest.mark.parametrize(("current", "new"), PAIRS)
def test_a_room_moves_only_up_or_to_failed_and_never_after_its_end(current: KVPoll, new: KVPoll) -> None:
    assert may_follow(current, new) == ((current, new) in ALLOWED)


@pytest.mark.parametrize(("current", "new"), PAIRS)
def test_the_table_keeps_to_the_rules(table: RoomTable, current: KVPoll, new: KVPoll) -> None:
    (record,) = opened(table, 1)
    if current is not KVPoll.BOOTSTRAPPING:
        assert table.move(record, current)
    moved = table.move(record, new)
    assert moved == ((current, new) in ALLOWED)
    assert record.status is (new if moved else current)


def test_the_failure_of_a_room_is_the_first_one(table: RoomTable) -> None:
    (record,) = opened(table, 1)
    assert table.move(record, KVPoll.FAILED, FAILURE)
    assert not table.move(record, KVPoll.FAILED, KVTransferError(FailureCode.ABORTED, "late", "x", "y"))
    assert record.failure is FAILURE
    assert record.status is KVPoll.FAILED


def test_a_room_that_succeeded_cannot_fail_any_more(table: RoomTable) -> None:
    (record,) = opened(table, 1)
    table.move(record, KVPoll.SUCCESS)
    assert not table.move(record, KVPoll.FAILED, FAILURE)
    assert (record.status, record.failure) == (KVPoll.SUCCESS, None)


def test_only_the_end_of_a_room_has_a_time(table: RoomTable) -> None:
    moving, ended = opened(table, 1, 2)
    table.move(moving, KVPoll.TRANSFERRING)
    table.move(ended, KVPoll.SUCCESS)
    assert moving.ended_at is None
    assert ended.ended_at is not None
    assert ended.ended_at >= ended.opened_at


def test_one_of_many_threads_ends_a_room(table: RoomTable) -> None:
    records = opened(table, *range(50))
    start = threading.Barrier(4)

    def end(status: KVPoll) -> list[bool]:
        start.wait(30)
        return [table.move(record, status) for record in records]

    with ThreadPoolExecutor(4) as pool:
        wins = list(pool.map(end, [KVPoll.SUCCESS, KVPoll.FAILED] * 2))
    assert [sum(each) for each in zip(*wins, strict=True)] == [1] * 50
    assert sorted(ended_in(table, past())) == list(range(50))


# Opening and clearing


def test_a_room_opens_as_bootstrapping_with_growing_generations(table: RoomTable) -> None:
    records = opened(table, 5, 3, 0, 2**63 - 1)
    assert [record.generation for record in records] == [1, 2, 3, 4]
    assert {record.status for record in records} == {KVPoll.BOOTSTRAPPING}


def test_a_room_that_is_open_cannot_be_opened_again(table: RoomTable) -> None:
    (record,) = opened(table, 5)
    for status in (KVPoll.BOOTSTRAPPING, KVPoll.SUCCESS):
        table.move(record, status)
        with pytest.raises(RoomError) as caught:
            opened(table, 5)
        assert caught.value.happened == "room 5 is open already"
        assert caught.value.there_is == f"generation 1, {status.name}"
        assert caught.value.to_do == "clear() the earlier request first, or use another room"


@pytest.mark.parametrize("room", [-1, 2**63, 1.0, "5", None, True])
def test_what_is_not_a_room_id_is_refused(table: RoomTable, room: int) -> None:
    with pytest.raises(RoomError) as caught:
        table.open(RoomId(room), soon())
    assert caught.value.happened.endswith("is no room id")
    assert repr(room) in caught.value.happened
    assert caught.value.there_is == "rooms are 0 to 2**63 - 1"


def test_numpys_integers_are_room_ids(table: RoomTable) -> None:
    record = table.open(RoomId(np.int64(7)), soon())
    assert type(record.room) is int
    assert ended_in(table, Deadline.after(0.001)) == []


def test_a_cleared_room_opens_again_as_a_new_generation(table: RoomTable) -> None:
    (old,) = opened(table, 5)
    table.move(old, KVPoll.FAILED, FAILURE)
    table.clear(old)
    (new,) = opened(table, 5)
    assert new.generation == old.generation + 1
    assert (new.status, new.failure) == (KVPoll.BOOTSTRAPPING, None)
    assert old.status is KVPoll.FAILED


def test_a_late_move_of_a_cleared_room_touches_neither_its_successor_nor_the_queue(table: RoomTable) -> None:
    (old,) = opened(table, 5)
    table.clear(old)
    (new,) = opened(table, 5)
    table.move(old, KVPoll.SUCCESS)
    assert new.status is KVPoll.BOOTSTRAPPING
    assert ended_in(table, past()) == []
    table.clear(old)
    with pytest.raises(RoomError, match="open already"):
        opened(table, 5)


def test_clearing_twice_is_fine(table: RoomTable) -> None:
    (record,) = opened(table, 5)
    table.clear(record)
    table.clear(record)
    opened(table, 5)


# Who has ended


def test_finished_returns_every_ended_room_once_in_order(table: RoomTable) -> None:
    first, second, third = opened(table, 1, 2, 3)
    table.move(second, KVPoll.SUCCESS)
    table.move(first, KVPoll.FAILED, FAILURE)
    assert ended_in(table, soon()) == [2, 1]
    table.move(third, KVPoll.SUCCESS)
    assert ended_in(table, soon()) == [3]
    assert ended_in(table, past()) == []


def test_a_cleared_room_is_not_finished(table: RoomTable) -> None:
    first, second = opened(table, 1, 2)
    for record in (first, second):
        table.move(record, KVPoll.SUCCESS)
    table.clear(first)
    assert ended_in(table, past()) == [2]


def in_thread(wait: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Start waiting in a thread of its own; its result is put into the list."""
    results: list[object] = []
    thread = threading.Thread(target=lambda: results.append(wait()))
    thread.start()
    return thread, results


def test_finished_is_woken_by_the_end_of_a_room(table: RoomTable) -> None:
    (record,) = opened(table, 1)
    thread, results = in_thread(lambda: ended_in(table, soon()))
    table.move(record, KVPoll.TRANSFERRING)
    table.move(record, KVPoll.SUCCESS)
    thread.join(30)
    assert results == [[1]]


def test_a_peer_is_told_after_the_move_and_before_a_waiter_wakes(table: RoomTable) -> None:
    (record,) = opened(table, 1)
    seen: list[tuple[KVPoll, bool, object]] = []
    thread, results = in_thread(lambda: ended_in(table, soon()))

    def tell() -> None:
        thread.join(0.05)
        seen.append((record.status, thread.is_alive(), list(results)))

    assert table.move(record, KVPoll.SUCCESS, tell=tell)
    thread.join(30)
    assert seen == [(KVPoll.SUCCESS, True, [])]
    assert results == [[1]]
    assert not table.move(record, KVPoll.FAILED, tell=tell)
    assert len(seen) == 1


def test_waiters_wake_although_telling_failed(table: RoomTable) -> None:
    (record,) = opened(table, 1)
    thread, results = in_thread(lambda: ended_in(table, soon()))

    def tell() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        table.move(record, KVPoll.SUCCESS, tell=tell)
    thread.join(30)
    assert results == [[1]]


def test_every_waiter_is_woken_and_each_room_goes_to_one_of_them(table: RoomTable) -> None:
    records = opened(table, 1, 2)
    waiters = [in_thread(lambda: ended_in(table, soon())) for _ in range(2)]
    seen: list[object] = []
    table.move(records[0], KVPoll.SUCCESS)
    while not any(results for _, results in waiters):
        waiters[0][0].join(0.01)
    table.move(records[1], KVPoll.SUCCESS)
    for thread, results in waiters:
        thread.join(30)
        seen += results
    assert sorted(seen, key=repr) == [[1], [2]]


def test_wait_returns_the_end_of_its_room(table: RoomTable) -> None:
    one, other = opened(table, 1, 2)
    thread, results = in_thread(lambda: table.wait(one, soon()))
    table.move(other, KVPoll.SUCCESS)
    table.move(one, KVPoll.FAILED, FAILURE)
    thread.join(30)
    assert results == [KVPoll.FAILED]
    assert table.wait(other, soon()) is KVPoll.SUCCESS


def test_wait_returns_the_status_at_the_deadline(table: RoomTable) -> None:
    (record,) = opened(table, 1)
    table.move(record, KVPoll.TRANSFERRING)
    assert table.wait(record, past()) is KVPoll.TRANSFERRING
    assert table.wait(record, Deadline.after(0.01)) is KVPoll.TRANSFERRING


def test_shutting_the_table_ends_every_wait_now_and_later(table: RoomTable) -> None:
    (record,) = opened(table, 1)
    finished, rooms = in_thread(lambda: ended_in(table, soon()))
    waiting, status = in_thread(lambda: table.wait(record, soon()))
    table.shut()
    finished.join(30)
    waiting.join(30)
    assert (rooms, status) == ([[]], [KVPoll.BOOTSTRAPPING])
    table.move(record, KVPoll.FAILED, FAILURE)
    assert ended_in(table, soon()) == [1]
    assert ended_in(table, soon()) == []


# Deadlines


def test_rooms_expire_on_their_own_clock(table: RoomTable) -> None:
    clock = OwnClock()
    early, late, ended = (
        table.open(RoomId(room), Deadline.after(seconds, clock))
        for room, seconds in enumerate((5.0, 50.0, 5.0))
    )
    table.move(ended, KVPoll.SUCCESS)
    assert table.expired() == []
    clock.now += 5
    assert table.expired() == [early]
    clock.now += 45
    assert table.expired() == [early, late]
    table.move(early, KVPoll.FAILED, early.missed())
    table.clear(late)
    assert table.expired() == []


def test_a_deadline_is_only_brought_forward(table: RoomTable) -> None:
    clock = OwnClock()
    record = table.open(RoomId(1), Deadline.after(10, clock))
    table.tighten(record, Deadline.after(50, clock))
    assert record.deadline.at == 110
    table.tighten(record, Deadline.after(2, clock))
    assert record.deadline.at == 102


def test_a_missed_deadline_says_where_the_room_stood(table: RoomTable) -> None:
    (record,) = opened(table, 7)
    table.move(record, KVPoll.TRANSFERRING)
    error = record.missed()
    assert error.code is FailureCode.DEADLINE
    assert error.happened == "room 7 missed its deadline"
    assert error.there_is.startswith("it was TRANSFERRING and open for ")
    assert error.there_is.endswith(" s; awaited: the other side")
    assert error.to_do.startswith("raise the request's deadline")
    error = record.missed(Awaited("decode rank 1", "look there"))
    assert error.there_is.endswith(" s; awaited: decode rank 1")
    assert error.to_do == "look there"


# Who has ended, and is safe only later


@pytest.mark.parametrize("taken", [True, False])
def test_finished_returns_a_room_again_that_fell_silent_after_its_end(table: RoomTable, taken: bool) -> None:
    (record,) = opened(table, 1)
    table.move(record, KVPoll.FAILED, FAILURE, silent=False)
    if taken:
        assert ended_in(table, past()) == [1]
        thread, results = in_thread(lambda: ended_in(table, soon()))
        table.fell_silent(record)
        thread.join()
        assert results == [[1]]
    else:
        table.fell_silent(record)
        assert ended_in(table, past()) == [1]
    table.fell_silent(record)
    assert ended_in(table, past()) == []


def test_a_room_that_was_silent_as_it_ended_is_returned_once(table: RoomTable) -> None:
    (record,) = opened(table, 1)
    table.move(record, KVPoll.SUCCESS, silent=True)
    assert ended_in(table, past()) == [1]
    table.fell_silent(record)
    assert ended_in(table, past()) == []
    table.moves_yet(record)
    table.fell_silent(record)
    assert ended_in(table, past()) == [1]


def test_a_room_that_falls_silent_after_it_was_cleared_is_not_returned(table: RoomTable) -> None:
    (record,) = opened(table, 1)
    table.move(record, KVPoll.FAILED, FAILURE)
    table.clear(record)
    opened(table, 1)
    table.fell_silent(record)
    assert ended_in(table, past()) == []
