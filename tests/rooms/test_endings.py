"""Who waits for the end of rooms is woken by it, and hears of each once, or again once it is safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from pair import config, paired, until

from pdcore.arguments import moment
from pdcore.errors import FailureCode, KVTransferError
from pdcore.events import Event, RoomEnded
from pdcore.model import Deadline, Generation, KVPoll, RoomId
from pdcore.protocol.room import Room
from pdcore.rooms.endings import Endings

FAILURE = KVTransferError(FailureCode.ENGINE, "it broke", "1 of 2", "mend it")
LATER = 1e12


@pytest.fixture
def endings() -> Endings:
    return Endings()


def soon() -> Deadline:
    return Deadline.after(60)


def past() -> Deadline:
    return Deadline(0.0)


def rooms(*numbers: int) -> list[Room]:
    now = time.monotonic()
    return [Room(RoomId(number), Generation(number), now, LATER) for number in numbers]


def end(endings: Endings, *ended: Room, status: KVPoll = KVPoll.SUCCESS) -> None:
    for room in ended:
        room.status = status
        endings.tell(room)


def finished(endings: Endings, deadline: Deadline | None = None) -> list[RoomId] | None:
    """Wait for rooms of which none misses its deadline."""
    return endings.finished(soon() if deadline is None else deadline, lambda: None)


@pytest.fixture
def in_thread() -> Iterator[Callable[[Callable[[], object]], tuple[threading.Thread, list[object]]]]:
    """Start waiting in a thread of its own; its result is put into the list. All must end."""
    threads: list[threading.Thread] = []

    def start(wait: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
        results: list[object] = []
        thread = threading.Thread(target=lambda: results.append(wait()))
        threads.append(thread)
        thread.start()
        return thread, results

    yield start
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


Start = Callable[[Callable[[], object]], tuple[threading.Thread, list[object]]]


def until_waiting(endings: Endings, waiters: int = 1) -> None:
    until(lambda: endings._waiting >= waiters)


# --- finished -------------------------------------------------------------------------------


def test_finished_returns_every_ended_room_once_in_order(endings: Endings) -> None:
    first, second, third = rooms(1, 2, 3)
    end(endings, second, first)
    assert finished(endings) == [2, 1]
    end(endings, third)
    assert finished(endings) == [3]
    assert finished(endings, past()) == []


def test_a_cleared_room_is_not_finished(endings: Endings) -> None:
    first, second = rooms(1, 2)
    end(endings, first, second)
    first.cleared = True
    endings.forget(first)
    assert finished(endings, past()) == [2]


def test_what_is_said_of_a_cleared_room_touches_no_later_one_of_its_id(endings: Endings) -> None:
    (old,), (new,) = rooms(5), rooms(5)
    old.cleared = True
    end(endings, old)
    assert finished(endings, past()) == []
    end(endings, new)
    end(endings, old)  # it fell silent
    endings.forget(old)
    assert finished(endings) == [5]


def test_finished_is_woken_by_the_end_of_a_room(endings: Endings, in_thread: Start) -> None:
    (room,) = rooms(1)
    thread, results = in_thread(lambda: finished(endings))
    until_waiting(endings)
    end(endings, room)
    thread.join(30)
    assert results == [[1]]


def test_every_waiter_is_woken_and_each_room_goes_to_one_of_them(endings: Endings, in_thread: Start) -> None:
    waiters = [in_thread(lambda: finished(endings)) for _ in range(2)]
    until_waiting(endings, 2)
    first, second = rooms(1, 2)
    end(endings, first)
    until(lambda: any(results for _, results in waiters))
    end(endings, second)
    for thread, _ in waiters:
        thread.join(30)
    assert sorted(str(results) for _, results in waiters) == ["[[1]]", "[[2]]"]


@pytest.mark.parametrize("taken", [True, False])
def test_a_room_that_falls_silent_after_its_end_is_returned_again(
    taken: bool, endings: Endings, in_thread: Start
) -> None:
    (room,) = rooms(1)
    end(endings, room, status=KVPoll.FAILED)
    if taken:
        assert finished(endings) == [1]
        thread, results = in_thread(lambda: finished(endings))
        until_waiting(endings)
        endings.tell(room)
        thread.join(30)
        assert results == [[1]]
    else:
        endings.tell(room)
        assert finished(endings) == [1]
    assert finished(endings, past()) == []


def test_finished_returns_nothing_when_the_next_room_misses_its_deadline(endings: Endings) -> None:
    assert endings.finished(soon(), time.monotonic) is None


def test_finished_returns_no_room_at_its_deadline(endings: Endings) -> None:
    assert finished(endings, Deadline.after(0.01)) == []


def test_who_waits_looks_anew_at_deadlines_when_a_room_has_an_earlier_one(
    endings: Endings, in_thread: Start
) -> None:
    due = [LATER]
    thread, results = in_thread(lambda: endings.finished(soon(), lambda: due[0]))
    until_waiting(endings)
    due[0] = time.monotonic()
    endings.sooner()
    thread.join(30)
    assert results == [None]


# --- wait -----------------------------------------------------------------------------------


def test_wait_ends_with_its_room_and_no_other(endings: Endings, in_thread: Start) -> None:
    one, other = rooms(1, 2)
    thread, results = in_thread(lambda: endings.wait(one, soon()))
    until_waiting(endings)
    end(endings, other)
    assert not results
    end(endings, one)
    thread.join(30)
    assert results == [None]
    endings.wait(other, soon())


@pytest.mark.parametrize("whose", ["the caller's", "the room's"])
def test_wait_ends_with_the_earlier_deadline(whose: str, endings: Endings) -> None:
    (room,) = rooms(1)
    if whose == "the room's":
        room.deadline = time.monotonic() + 0.01
    endings.wait(room, Deadline.after(0.01) if whose == "the caller's" else soon())
    assert not room.over


def test_shutting_ends_every_wait_now_and_later(endings: Endings, in_thread: Start) -> None:
    (room,) = rooms(1)
    for wait in (lambda: finished(endings), lambda: endings.wait(room, soon())):
        in_thread(wait)
    until_waiting(endings, 2)
    endings.shut()
    end(endings, room, status=KVPoll.FAILED)
    assert finished(endings) in ([], [1])  # or the thread had it
    assert finished(endings) == []
    endings.wait(rooms(2)[0], soon())


# --- deadlines of callers -------------------------------------------------------------------


def test_a_deadline_is_a_moment_of_the_monotonic_clock() -> None:
    deadline = Deadline.after(5.0)
    assert moment(deadline) == deadline.at


def test_a_deadline_on_a_clock_of_its_own_is_as_far_away_as_it_says() -> None:
    before = time.monotonic()
    at = moment(Deadline(107.0, lambda: 100.0))
    assert before + 7.0 <= at <= time.monotonic() + 7.0


@pytest.mark.parametrize("clock", [lambda: 1 / 0, lambda: float("nan"), lambda: None])
def test_a_deadline_whose_clock_is_broken_is_now(clock: Callable[[], float], endings: Endings) -> None:
    before = time.monotonic()
    assert before <= moment(Deadline(1e9, clock)) <= time.monotonic()
    assert finished(endings, Deadline(1e9, clock)) == []


# --- managers -------------------------------------------------------------------------------


def test_who_waits_is_woken_though_who_is_told_before_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(*_: object) -> None:
        raise ZeroDivisionError("somebody's code")

    def subscriber(event: Event) -> None:
        if isinstance(event, RoomEnded):
            raises()

    with paired(subscribers=[subscriber]) as pair:
        sender, receiver = pair.open(1)
        sender.init(1)
        monkeypatch.setattr(receiver, "fell_silent", raises)
        monkeypatch.setattr(sender, "metric", raises)
        receiver.send_metadata([0])
        sender.send([0])
        for handle, manager in ((sender, pair.prefill), (receiver, pair.decode)):
            assert manager.finished(soon()) == [1]
            assert handle.wait(soon()) is KVPoll.SUCCESS
            handle.clear()
        monkeypatch.undo()
    assert "Ended could not be carried out" in caplog.text


def test_who_waits_for_a_room_whose_deadline_passes_has_it_failed() -> None:
    with paired(config(request=0.2)) as pair:
        sender = pair.prefill.sender(RoomId(1))
        assert pair.prefill.finished(soon()) == [1]
        other = pair.prefill.sender(RoomId(2), Deadline.after(0.05))
        assert other.wait(soon()) is KVPoll.FAILED
        for handle in (sender, other):
            failure = handle.failure()
            assert failure is not None
            assert failure.code is FailureCode.DEADLINE
