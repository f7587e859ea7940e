"""Which life of a room a word of decode is about, as a table."""

from __future__ import annotations

import attrs
import pytest

from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Deadline, Generation, Incarnation, KVPoll, PeerIdentity, Role, RoomId
from pdcore.prefill.lives import MOST, MOST_OF_ONE, SECONDS, SKEW, Life, Lives, Meaning, Word, meaning
from pdcore.rooms.status import Room
from pdcore.wire import Route

ROOM = RoomId(7)
US, OTHER = Route(b"us"), Route(b"other")
NOW = 1000.0
FAILURE = KVTransferError(FailureCode.ABORTED, "it ended", "so", "-")


def life(
    opened: float,
    ended: float | None = None,
    *,
    success: bool = False,
    heard: dict[Route, int] | None = None,
    holder: Route | None = None,
    speaker: Route | None = None,
    number: int = 1,
) -> Life:
    """A life of prefill's room that opened and ended so many seconds ago."""
    record = Room(ROOM, Generation(number), Deadline.after(300))
    record.opened_at = NOW - opened
    if ended is not None:
        record.status = KVPoll.SUCCESS if success else KVPoll.FAILED
        record.ended_at = NOW - ended
    one = Life(record, {route: Generation(n) for route, n in (heard or {}).items()})
    if speaker is not None:
        one.speakers = {0: speaker}
    if holder is not None:
        identity = PeerIdentity(Role.DECODE, Incarnation("ab" * 16), "h:1")
        one.promised = {0: (holder, Generation(one.heard.get(holder, 1)), identity)}
        one.complete = True
    return one


def word(generation: int = 1, opened: float = 1.0, ended: float | None = None, rank: int = 0) -> Word:
    """What rank ``rank`` at the route ``us`` says of a room that it opened so many seconds ago."""
    return Word(ROOM, US, rank, Generation(generation), NOW - opened, None if ended is None else NOW - ended)


CASES: dict[str, tuple[Word, Life | None, list[Life], Meaning]] = {
    "the first word": (word(), None, [], Meaning.NEXT),
    "for the open life": (word(), life(5), [], Meaning.PRESENT),
    "said before": (word(), life(5, heard={US: 1}, holder=US), [], Meaning.OLD),
    "of a life before": (word(), life(5, heard={US: 2}, holder=US), [], Meaning.OLD),
    "of a next life": (word(2), life(5, heard={US: 1}, holder=US), [], Meaning.SUPERSEDED),
    "another has it": (word(), life(5, heard={OTHER: 1}, holder=OTHER), [], Meaning.TAKEN),
    "ended, unheard": (word(), life(5, 2), [], Meaning.OVER),
    "ended, refused, again": (word(), life(5, 2, heard={US: 1}), [], Meaning.OVER),
    "ended, promised, again": (word(), life(5, 2, heard={US: 1}, holder=US), [], Meaning.OLD),
    "ended, its next": (word(2), life(5, 2, heard={US: 1}, holder=US), [], Meaning.NEXT),
    "another got it, ours is older": (
        word(opened=3), life(5, 2, success=True, heard={OTHER: 1}, holder=OTHER), [], Meaning.TAKEN
    ),
    "another got it, ours is younger": (
        word(opened=1), life(5, 2, success=True, heard={OTHER: 1}, holder=OTHER), [], Meaning.CONTESTED
    ),
    "cleared, unheard": (word(), None, [life(5, 2)], Meaning.OVER),
    "cleared, unheard, too long ago": (word(), None, [life(99, SECONDS + 1)], Meaning.NEXT),
    "cleared, heard": (word(2), None, [life(5, 2, heard={US: 1})], Meaning.NEXT),
    "cleared, refused, again": (word(opened=3), None, [life(5, 2, heard={US: 1})], Meaning.OVER),
    "cleared, promised, again": (word(opened=3), None, [life(5, 2, heard={US: 1}, holder=US)], Meaning.NEXT),
    "cleared, heard of others of the group": (
        word(opened=4, rank=1), None, [life(5, 2, heard={OTHER: 1})], Meaning.OVER
    ),
    "cleared, and opened there much later than others of the group": (
        word(opened=2, rank=1), None, [life(9, 3 + SKEW, heard={OTHER: 1})], Meaning.NEXT
    ),
    "cleared, another got it": (
        word(opened=1), None, [life(5, 2, success=True, heard={OTHER: 1}, holder=OTHER)], Meaning.NEXT
    ),
    "cleared, another got it, ours is older": (
        word(opened=3), None, [life(5, 2, success=True, heard={OTHER: 1}, holder=OTHER)], Meaning.OVER
    ),
    "cleared and opened again, older": (word(opened=4), life(1), [life(5, 2)], Meaning.OVER),
    "cleared and opened again, younger": (word(opened=1), life(1), [life(5, 2)], Meaning.PRESENT),
    "given up before the open life was opened": (
        word(opened=4, ended=3), life(1), [life(5, 2)], Meaning.OVER
    ),
    "given up while it was opened": (word(opened=1.5, ended=0), life(1), [life(5, 2)], Meaning.OVER),
    "given up long after it was opened": (word(opened=8, ended=0), life(9), [life(19, 12)], Meaning.PRESENT),
    "given up, all lives before heard": (
        word(2, opened=1, ended=0), life(1), [life(5, 2, heard={US: 1})], Meaning.PRESENT
    ),
    "given up, of the life before another worker was heard": (
        word(opened=1.5, ended=0), life(1), [life(5, 2, heard={OTHER: 1}, speaker=OTHER)], Meaning.PRESENT
    ),
    "given up, of the life before another rank of the group was heard": (
        word(opened=1.5, ended=0, rank=1),
        life(1),
        [life(5, 2, heard={OTHER: 1}, speaker=OTHER)],
        Meaning.OVER,
    ),
    "given up by who has not got it": (
        word(ended=0), life(5, heard={OTHER: 1}, holder=OTHER), [], Meaning.TAKEN
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_word_means_what_the_table_says(case: str) -> None:
    said, present, earlier, what = CASES[case]
    assert meaning(said, present, earlier, NOW)[0] is what


def test_who_gave_up_several_lives_is_heard_of_each_and_who_asks_of_the_last() -> None:
    lives = Lives(lambda: NOW)
    three = [life(9 - n, 8 - n, number=n) for n in range(1, 4)]
    for one in three:
        lives.cleared(one)
    for number, one in enumerate(three[:2], 1):
        gave_up = word(number, opened=0.1, ended=0.0)
        what, found = meaning(gave_up, None, lives.earlier(ROOM), NOW)
        assert (what, found) == (Meaning.OVER, one)
        lives.hear(gave_up, one)
    asks = attrs.evolve(word(9), route=OTHER)
    assert meaning(asks, None, lives.earlier(ROOM), NOW) == (Meaning.OVER, three[2])
    lives.hear(asks, three[2])
    assert all(OTHER in one.heard for one in three)
    assert meaning(asks, None, lives.earlier(ROOM), NOW)[0] is Meaning.NEXT


def test_what_is_remembered_is_bounded_in_number_and_time() -> None:
    clock = [NOW]
    lives = Lives(lambda: clock[0])
    for number in range(MOST + 10):
        record = Room(RoomId(number), Generation(1), Deadline.after(300))
        record.ended_at = NOW
        lives.cleared(Life(record))
        lives.given_up(attrs.evolve(word(), room=RoomId(number)), FAILURE)
    assert (len(lives._cleared), len(lives._given_up)) == (MOST, MOST)
    for number in range(20):
        lives.cleared(life(5, 2, number=number))
    assert len(lives.earlier(ROOM)) == MOST_OF_ONE
    clock[0] += SECONDS + 1
    assert not lives.opened(Life(Room(RoomId(100), Generation(1), Deadline.after(300))))
    lives.sweep()
    assert (len(lives._cleared), len(lives._given_up)) == (0, 0)


def test_a_room_that_was_given_up_is_told_when_it_is_opened_unless_the_rank_came_again() -> None:
    lives = Lives(lambda: NOW)
    lives.given_up(word(), FAILURE)
    one = life(1)
    assert lives.opened(one)
    assert one.believe() is FAILURE
    assert not lives.opened(life(1))
    lives.given_up(word(), FAILURE)
    lives.wanted_again(word(rank=1))
    lives.wanted_again(word())
    assert not lives.opened(life(1))


def test_a_life_that_was_given_up_before_it_opened_does_not_wait_for_the_rank_again() -> None:
    lives, first = Lives(lambda: NOW), life(2)
    lives.given_up(word(1, opened=3, ended=3), FAILURE)
    assert lives.opened(first)
    assert first.believe() is FAILURE
    first.record.status, first.record.ended_at = KVPoll.FAILED, NOW - 2
    lives.cleared(first)
    assert meaning(word(2, opened=0), None, lives.earlier(ROOM), NOW) == (Meaning.NEXT, None)
    gives_up = word(2, opened=0, ended=0)
    assert meaning(gives_up, None, lives.earlier(ROOM), NOW) == (Meaning.NEXT, None)


def test_who_was_open_as_a_life_ended_in_doubt_belongs_to_it_and_who_came_later_does_not() -> None:
    lives, one = Lives(lambda: NOW), life(5)
    lives.given_up(word(1, opened=6, ended=6), FAILURE)
    assert lives.opened(one)
    assert one.believe() is FAILURE
    one.record.status, one.record.ended_at = KVPoll.FAILED, NOW - 2
    assert meaning(word(2, opened=3), one, [], NOW) == (Meaning.OVER, one)
    lives.cleared(one)
    assert meaning(word(2, opened=3), None, lives.earlier(ROOM), NOW) == (Meaning.OVER, one)
    assert meaning(word(2, opened=1), None, lives.earlier(ROOM), NOW) == (Meaning.NEXT, None)


@pytest.mark.parametrize(
    ("said", "one", "doubtful"),
    [
        (word(opened=1), life(5, 2), True),
        (word(opened=3), life(5, 2), False),
        (word(opened=1), life(5, 2, heard={OTHER: 1}), False),
    ],
    ids=["opened after it ended", "opened before", "others of the group came"],
)
def test_a_word_may_be_of_the_next_life_only_if_nobody_came_to_one_that_had_ended(
    said: Word, one: Life, doubtful: bool
) -> None:
    assert not one.in_doubt(said)  # not cleared: no next one can be
    Lives(lambda: NOW).cleared(one)
    assert one.in_doubt(said) is doubtful
