"""Whoever ends a room tells the other side at once; an id that both have cleared may be used again.

What ``tests/rooms/test_told_at_once.py`` asks of two managers, asked of two machines.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from two import GIVEN_UP, Handle, Two

from pdcore.model import Generation, RoomId
from pdcore.protocol.stimuli import Heard
from pdcore.wire import Abort, Failure

ROOM = RoomId(7)
SOON = 2.0


@pytest.fixture
def two() -> Two:
    """Both are paired already, as they are but for the first room."""
    two = Two()
    both = two.offered(RoomId(1)), two.asked(RoomId(1))
    two.settle()
    assert both[0].succeeded
    assert both[1].succeeded
    for handle in both:
        handle.clear()
    return two


def finish(two: Two, sender: Handle, receiver: Handle) -> None:
    two.wait(SOON)
    assert sender.succeeded, sender.room.failure
    assert receiver.succeeded, receiver.room.failure
    for handle in (sender, receiver):
        handle.clear()


def fails(two: Two, *handles: Handle) -> None:
    two.wait(SOON)
    assert all(handle.failed for handle in handles)


ENDS: list[Callable[[Handle], None]] = [Handle.abort, Handle.clear]


@pytest.mark.parametrize("settles", [True, False])
@pytest.mark.parametrize("prefill_first", [True, False])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("ask", [Two.opened, Two.asked])
def test_prefill_learns_that_decode_gave_up(
    ask: Callable[[Two, RoomId], Handle],
    end: Callable[[Handle], None],
    prefill_first: bool,
    settles: bool,
    two: Two,
) -> None:
    sender = two.offered(ROOM) if prefill_first and ask is Two.opened else None
    receiver = ask(two, ROOM)
    if settles:
        two.settle()
    end(receiver)
    two.settle()
    fails(two, sender or two.offered(ROOM))


@pytest.mark.parametrize("stage", ["opens later", "has it open", "was about to ask"])
@pytest.mark.parametrize("end", ENDS)
def test_decode_learns_that_prefill_gave_up(end: Callable[[Handle], None], stage: str, two: Two) -> None:
    sender = two.offered(ROOM)
    receiver = two.opened(ROOM) if stage != "opens later" else None
    two.wait(0.2)
    end(sender)
    if receiver is None:
        receiver = two.asked(ROOM)
    elif stage == "was about to ask":
        two.place(receiver)
    fails(two, receiver)


def test_a_worker_may_have_a_room_that_another_got_once_prefill_clears_it(two: Two) -> None:
    sender, first = two.offered(ROOM), two.asked(ROOM)
    two.wait(0.1)
    assert sender.succeeded
    assert first.succeeded
    receiver = two.asked(ROOM, two.other)
    two.wait(0.1)
    sender.clear()
    finish(two, two.offered(ROOM), receiver)


def test_a_second_worker_is_told_who_has_the_room(two: Two) -> None:
    sender = two.offered(ROOM)
    first = two.opened(ROOM)
    two.wait(0.2)
    second = two.asked(ROOM, two.other)
    two.wait(0.2)
    assert second.succeeded
    fails(two, first)
    assert sender.succeeded


# --- ids that are used again ----------------------------------------------------------------


def test_a_life_that_decode_gave_up_does_not_hurt_the_next(two: Two) -> None:
    for _ in range(3):
        sender, receiver = two.offered(ROOM), two.opened(ROOM)
        receiver.abort()
        fails(two, sender)
        receiver.clear()
        sender.clear()
    finish(two, two.offered(ROOM), two.asked(ROOM))


@pytest.mark.parametrize("settles", [True, False])
def test_a_life_that_both_gave_up_at_once_does_not_hurt_the_next(settles: bool, two: Two) -> None:
    for _ in range(5):
        sender, receiver = two.offered(ROOM), two.opened(ROOM)
        sender.clear()
        receiver.clear()
        if settles:
            two.settle()
    finish(two, two.offered(ROOM), two.asked(ROOM))


def test_a_life_that_prefill_gave_up_does_not_hurt_the_next(two: Two) -> None:
    for _ in range(2):
        sender, receiver = two.offered(ROOM), two.opened(ROOM)
        sender.clear()
        fails(two, receiver)
        receiver.clear()
    receiver = two.asked(ROOM)
    two.settle()
    finish(two, two.offered(ROOM), receiver)


def test_a_life_that_decode_gave_up_before_prefill_opened_it_does_not_hurt_those_after(two: Two) -> None:
    for _ in range(3):
        receiver = two.opened(ROOM)
        receiver.clear()
        two.settle()
        sender = two.offered(ROOM)
        fails(two, sender)
        sender.clear()
    receiver = two.asked(ROOM)
    two.settle()
    finish(two, two.offered(ROOM), receiver)


def test_a_life_that_only_prefill_had_does_not_hurt_one_in_which_decode_comes_first(two: Two) -> None:
    for _ in range(2):
        two.offered(ROOM).clear()
    receiver = two.asked(ROOM)
    two.settle()
    finish(two, two.offered(ROOM), receiver)


def test_a_life_that_only_decode_had_does_not_hurt_one_in_which_prefill_comes_first(two: Two) -> None:
    receiver = two.asked(ROOM)
    receiver.clear()
    two.settle()
    finish(two, two.offered(ROOM), two.asked(ROOM))


@pytest.mark.parametrize("settles", [True, False])
@pytest.mark.parametrize("by_decode", [True, False])
def test_a_life_that_one_side_had_does_not_keep_what_the_next_one_ends_of(
    by_decode: bool, settles: bool, two: Two
) -> None:
    if by_decode:
        two.offered(ROOM).clear()
        two.opened(ROOM).clear()
        if settles:
            two.settle()
        fails(two, two.offered(ROOM))
    else:
        two.asked(ROOM).clear()
        two.settle()
        two.offered(ROOM).clear()
        fails(two, two.asked(ROOM))


def test_a_request_that_was_refused_is_not_kept_for_the_next_life(two: Two) -> None:
    two.offered(ROOM).clear()
    receiver = two.opened(ROOM)
    two.wait(0.2)
    two.place(receiver)
    fails(two, receiver)
    receiver.clear()
    receiver = two.asked(ROOM)
    finish(two, two.offered(ROOM), receiver)


def test_decode_that_gave_up_may_ask_again_before_prefill_opens_the_room(two: Two) -> None:
    two.opened(ROOM).clear()
    receiver = two.asked(ROOM)
    two.settle()
    finish(two, two.offered(ROOM), receiver)


def test_the_next_request_of_a_rank_whose_abort_was_lost_ends_the_life_before(two: Two) -> None:
    sender, first = two.offered(ROOM), two.asked(ROOM)
    sender = two.offered(RoomId(8))
    two.settle()
    first = two.asked(RoomId(9))
    two.settle()
    first.clear()
    two.decode.posted.clear()  # and prefill isn't told
    sender = two.offered(RoomId(9))
    second = two.asked(RoomId(9))
    two.settle()
    if not sender.succeeded:
        sender.clear()
        finish(two, two.offered(RoomId(9)), second)


@pytest.mark.parametrize("who", ["decode", "prefill"])
def test_what_is_remembered_is_bounded_in_time(who: str, two: Two) -> None:
    (two.opened(ROOM) if who == "decode" else two.offered(ROOM)).clear()
    two.wait(62.0)
    receiver = two.asked(ROOM)
    two.wait(1.0)
    finish(two, two.offered(ROOM), receiver)


def test_a_worker_that_gives_up_takes_the_room_from_no_other_that_has_asked(two: Two) -> None:
    guest = two.opened(ROOM, two.other)
    two.wait(0.2)
    receiver = two.asked(ROOM)
    two.settle()
    guest.abort()
    two.settle()
    finish(two, two.offered(ROOM), receiver)


def test_prefill_forgets_who_has_a_room_open_and_does_not_say_so_again(two: Two) -> None:
    waits, gone = two.opened(ROOM), two.opened(RoomId(8))
    two.wait(0.2)
    gone.clear()
    two.decode.posted.clear()  # and prefill isn't told
    two.wait(70.0)
    guests = two.prefill.machine.answers.guests
    assert [guest.generation for guest in guests.of(ROOM)] == [waits.generation]
    assert not guests.of(RoomId(8))
    two.offered(ROOM).clear()
    fails(two, waits)


def test_a_reminder_of_an_earlier_life_hides_no_later_one_from_prefill(two: Two) -> None:
    first = two.opened(ROOM)
    two.wait(0.2)
    second = attrs.evolve(two.prefill.machine.answers.guests.of(ROOM)[0], generation=Generation(99))
    two.prefill.machine.answers.guests.add(ROOM, second)
    abort = Abort(ROOM, first.generation, Failure.of(GIVEN_UP))
    two.feed(two.prefill, Heard(two.decode.route, abort))
    assert two.prefill.machine.answers.guests.of(ROOM) == [second]
