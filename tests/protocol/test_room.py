"""What a room may become, what is done about its end, and when it misses its deadline."""

from __future__ import annotations

import itertools

import attrs
import pytest

from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Generation, KVPoll, RoomId
from pdcore.protocol.actions import Ended, Forget, Post, Silent
from pdcore.protocol.room import Awaited, Room, Turn, may_follow
from pdcore.wire import Inquiry, Route

OPEN = (KVPoll.BOOTSTRAPPING, KVPoll.WAITING_FOR_INPUT, KVPoll.TRANSFERRING)
ALLOWED = {
    *itertools.combinations((*OPEN, KVPoll.SUCCESS), 2),
    *((state, KVPoll.FAILED) for state in OPEN),
}
PAIRS = list(itertools.product(KVPoll, KVPoll))
FAILURE = KVTransferError(FailureCode.ENGINE, "it broke", "1 of 2", "mend it")
LATE = KVTransferError(FailureCode.ABORTED, "late", "x", "y")


@attrs.define(eq=False)
class MovingRoom(Room):
    """A room of which bytes are on their way for as long as ``moving``."""

    moving: bool = True

    @property
    def at_rest(self) -> bool:
        return not self.moving


@pytest.fixture
def turn() -> Turn:
    one = Turn()
    one.now = 100.0
    return one


def room(turn: Turn, number: int = 1, seconds: float = 60.0, *, moving: bool = False) -> Room:
    one = MovingRoom(RoomId(number), Generation(number), turn.now, turn.now + seconds, moving=moving)
    turn.expect(one)
    return one


# --- states ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("current", "new"), PAIRS)
def test_a_room_moves_only_up_or_to_failed_and_never_after_its_end(current: KVPoll, new: KVPoll) -> None:
    assert may_follow(current, new) == ((current, new) in ALLOWED)


@pytest.mark.parametrize(("current", "new"), PAIRS)
def test_a_room_keeps_to_the_rules(current: KVPoll, new: KVPoll, turn: Turn) -> None:
    one = room(turn)
    one.status = current
    one.rise(new)
    assert one.status is (new if (current, new) in ALLOWED else current)


def test_the_failure_of_a_room_is_the_first_one(turn: Turn) -> None:
    one = room(turn)
    assert turn.end(one, FAILURE)
    assert not turn.end(one, LATE)
    assert not turn.end(one)
    assert (one.status, one.failure) == (KVPoll.FAILED, FAILURE)


def test_a_room_that_succeeded_cannot_fail_any_more(turn: Turn) -> None:
    one = room(turn)
    assert turn.end(one)
    assert not turn.end(one, FAILURE)
    assert (one.status, one.failure) == (KVPoll.SUCCESS, None)


def test_only_the_end_of_a_room_has_a_time(turn: Turn) -> None:
    moving, ended = room(turn, 1), room(turn, 2)
    turn.now, turn.todo = 101.0, []
    moving.rise(KVPoll.TRANSFERRING)
    turn.end(ended)
    assert (moving.ended_at, ended.ended_at) == (None, 101.0)


# --- what is done about it ------------------------------------------------------------------


def test_peers_are_told_of_an_end_before_those_who_wait_and_it_is_forgotten_last(turn: Turn) -> None:
    one, other = room(turn, 1), room(turn, 2, moving=True)
    turn.end(one, FAILURE)
    turn.forget(one)
    turn.end(other)
    turn.post(Route(b"peer"), Inquiry(RoomId(1), Generation(1)))
    post, *others = turn.actions()
    assert isinstance(post, Post)
    assert others == [Ended(Generation(1), silent=True), Ended(Generation(2)), Forget(Generation(1))]
    turn.now, turn.todo = 101.0, []
    assert turn.actions() == []


def test_a_room_that_falls_silent_after_its_end_is_told_of_once_more(turn: Turn) -> None:
    one = room(turn, moving=True)
    turn.end(one, FAILURE)
    assert turn.actions() == [Ended(Generation(1))]
    for expected in ([Silent(Generation(1))], []):
        turn.now, turn.todo = 101.0, []
        turn.silence(one)
        assert turn.actions() == expected
    assert one.silent


def test_a_room_that_falls_silent_in_the_turn_of_its_end_is_told_of_once(turn: Turn) -> None:
    one = room(turn, moving=True)
    turn.end(one, FAILURE)
    turn.silence(one)
    assert turn.actions() == [Ended(Generation(1), silent=True)]


@pytest.mark.parametrize("moving", [False, True])
def test_who_sees_that_a_room_has_ended_sees_why_and_whether_it_is_silent(
    moving: bool, turn: Turn, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = room(turn, moving=moving)
    set_field = MovingRoom.__setattr__

    def looked_at(self: MovingRoom, name: str, value: object) -> None:
        set_field(self, name, value)
        if self.over:  # any thread may look between two assignments
            seen.append((self.failure, self.ended_at, self.silent))

    seen: list[object] = []
    monkeypatch.setattr(MovingRoom, "__setattr__", looked_at)
    turn.end(one, FAILURE)
    assert seen == [(FAILURE, 100.0, not moving)]


# --- deadlines ------------------------------------------------------------------------------


def test_rooms_are_overdue_once_from_their_deadline_on(turn: Turn) -> None:
    early, late, ended = room(turn, 1, 5.0), room(turn, 2, 50.0), room(turn, 3, 5.0)
    turn.end(ended)
    assert turn.due == 105.0
    turn.now, turn.todo = 104.9, []
    assert turn.overdue() == []
    turn.now, turn.todo = 105.0, []
    assert turn.overdue() == [early]
    turn.end(early, FAILURE)
    assert turn.due == 150.0
    turn.now, turn.todo = 150.0, []
    assert turn.overdue() == [late]
    turn.end(late, FAILURE)
    assert turn.overdue() == []
    assert turn.due is None


def test_the_next_deadline_is_that_of_a_room_which_has_not_ended(turn: Turn) -> None:
    rooms = [room(turn, number, 10.0 * number) for number in range(1, 5)]
    for number in (0, 2, 1):
        turn.end(rooms[number])
    assert turn.due == 140.0


def test_a_deadline_that_is_brought_forward_counts(turn: Turn) -> None:
    one = room(turn)
    turn.hurry(one, 103.0)
    assert turn.due == 103.0
    turn.now, turn.todo = 103.0, []
    assert turn.overdue() == [one]
    turn.end(one, FAILURE)
    turn.now, turn.todo = 200.0, []
    assert turn.overdue() == []


@pytest.mark.parametrize("hurries", [0, 1, 3])
def test_rooms_that_have_ended_are_not_kept_until_their_deadline(hurries: int, turn: Turn) -> None:
    oldest = room(turn, 1, 1.0)  # before which no other's comes
    for number in range(2, 5_000):
        one = room(turn, number, 3_000.0)
        for seconds in range(hurries):
            turn.hurry(one, one.deadline - seconds - 1.0)
        if number % 10:
            turn.end(one)
    open_ = 5_000 // 10
    assert len(turn._due) < (2 * open_ + 64) + hurries + 2
    assert turn.due == oldest.deadline


def test_a_missed_deadline_says_where_the_room_stood(turn: Turn) -> None:
    one = room(turn, 7)
    one.rise(KVPoll.TRANSFERRING)
    error = one.missed(Awaited("decode rank 1", "look there"), 103.0)
    assert error.code is FailureCode.DEADLINE
    assert error.happened == "room 7 missed its deadline"
    assert error.there_is == "it was TRANSFERRING and open for 3.0 s; awaited: decode rank 1"
    assert error.to_do == "look there"
