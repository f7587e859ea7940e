"""Which life of a room a word of decode is about, as a table."""

from __future__ import annotations

import attrs
import pytest

from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Generation, Incarnation, KVPoll, PeerIdentity, Role, RoomId
from pdcore.protocol.send.lives import MOST, MOST_OF_ONE, SECONDS, SKEW, Life, Lives, Meaning, Word, meaning
from pdcore.protocol.send.send_room import SendRoom
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
    one = Life(ROOM, Generation(number), NOW - opened, NOW - opened + 300)
    one.heard = {route: Generation(n) for route, n in (heard or {}).items()}
    if ended is not None:
        one.status = KVPoll.SUCCESS if success else KVPoll.FAILED
        one.ended_at = NOW - ended
    if speaker is not None:
        one.speakers = {0: speaker}
    if holder is not None:
        identity = PeerIdentity(Role.DECODE, Incarnation("ab" * 16), "h:1")
        one.promised = {0: (holder, Generation(one.heard.get(holder, 1)), identity)}
        one.complete = True
    return one


def cleared(one: Life, ago: float) -> Life:
    """That life, cleared so many seconds ago."""
    one.cleared, one.cleared_at = True, NOW - ago
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
    "opened before it was cleared": (word(opened=1), None, [cleared(life(5, 2), 0.5)], Meaning.OVER),
    "opened before it was cleared, and opened again": (
        word(opened=0.6), life(0.2), [cleared(life(5, 2), 0.5)], Meaning.OVER
    ),
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
    lives = Lives()
    three = [life(9 - n, 8 - n, number=n) for n in range(1, 4)]
    for one in three:
        lives.cleared(one, one.ended_at or NOW)
    for number, one in enumerate(three[:2], 1):
        gave_up = word(number, opened=0.1, ended=0.0)
        assert meaning(gave_up, None, lives.earlier(ROOM), NOW) == (Meaning.OVER, one)
        lives.hear(gave_up, one)
    asks = attrs.evolve(word(9), route=OTHER)
    assert meaning(asks, None, lives.earlier(ROOM), NOW) == (Meaning.OVER, three[2])
    lives.hear(asks, three[2])
    assert all(OTHER in one.heard for one in three)
    assert meaning(asks, None, lives.earlier(ROOM), NOW) == (Meaning.OVER, three[2])  # told again
    again = attrs.evolve(asks, generation=Generation(10))
    assert meaning(again, None, lives.earlier(ROOM), NOW) == (Meaning.NEXT, None)


def test_what_is_remembered_is_bounded_in_number_and_time() -> None:
    lives = Lives()
    for number in range(MOST + 10):
        lives.cleared(attrs.evolve(life(5, 0), room=RoomId(number)), NOW)
        lives.given_up(attrs.evolve(word(), room=RoomId(number)), FAILURE, NOW)
    assert (len(lives._cleared), len(lives._given_up)) == (MOST, MOST)
    for number in range(20):
        lives.cleared(life(5, 2, number=number), NOW - 2)
    assert len(lives.earlier(ROOM)) == MOST_OF_ONE
    later = NOW + SECONDS + 1
    assert not lives.opened(attrs.evolve(life(0), room=RoomId(100)), later)
    lives.sweep(later)
    assert (len(lives._cleared), len(lives._given_up)) == (0, 0)


def test_a_room_that_was_given_up_is_told_when_it_is_opened_unless_the_rank_came_again() -> None:
    lives = Lives()
    lives.given_up(word(), FAILURE, NOW)
    one = life(1)
    assert lives.opened(one, NOW)
    assert one.believe() is FAILURE
    assert not lives.opened(life(1), NOW)
    lives.given_up(word(), FAILURE, NOW)
    lives.wanted_again(word(rank=1))
    lives.wanted_again(word())
    assert not lives.opened(life(1), NOW)


def test_a_life_that_was_given_up_before_it_opened_does_not_wait_for_the_rank_again() -> None:
    lives, first = Lives(), life(2)
    lives.given_up(word(1, opened=3, ended=3), FAILURE, NOW)
    assert lives.opened(first, NOW)
    assert first.believe() is FAILURE
    first.status, first.ended_at = KVPoll.FAILED, NOW - 2
    lives.cleared(first, first.ended_at or NOW)
    assert meaning(word(2, opened=0), None, lives.earlier(ROOM), NOW) == (Meaning.NEXT, None)
    gives_up = word(2, opened=0, ended=0)
    assert meaning(gives_up, None, lives.earlier(ROOM), NOW) == (Meaning.NEXT, None)


def test_who_comes_again_after_a_life_that_it_gave_up_is_at_the_next_one() -> None:
    lives, one = Lives(), life(5)
    lives.given_up(word(1, opened=6, ended=6), FAILURE, NOW)
    assert lives.opened(one, NOW)
    assert one.believe() is FAILURE
    one.status, one.ended_at = KVPoll.FAILED, NOW - 2
    assert meaning(word(2, opened=1), one, [], NOW) == (Meaning.NEXT, one)
    lives.cleared(one, one.ended_at or NOW)
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
    Lives().cleared(one, one.ended_at or NOW)
    assert one.in_doubt(said) is doubtful


def test_what_is_remembered_of_a_room_has_no_lists_of_pages() -> None:
    lives = Lives()
    room = SendRoom(ROOM, Generation(1), NOW - 5, NOW + 300)
    room.heard, room.status, room.ended_at = {US: Generation(1)}, KVPoll.FAILED, NOW - 2
    lives.cleared(room, room.ended_at or NOW)
    (one,) = lives.earlier(ROOM)
    assert not isinstance(one, SendRoom)
    assert (one.cleared, one.heard, one.over, one.ended_at) == (True, room.heard, True, NOW - 2)
    assert meaning(word(1, opened=3), None, [one], NOW) == (Meaning.OVER, one)
