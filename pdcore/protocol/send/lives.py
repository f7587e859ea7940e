"""Which life of a room a word of decode is about: the present one, one that has ended, or the next.

A room id is used again, each side counts lives on its own, and either side may end a life before it has
met the other. What tells lives apart: a decode rank says a word of each of its lives to a paired prefill
rank, a request or that it gave up, in order; and an id is given out again only once both sides have
cleared it. So the first word of a rank that a life has ended without belongs to that life, if it can.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from enum import Enum

import attrs

from pdcore.errors import KVTransferError
from pdcore.model import Generation, KVPoll, PeerIdentity, RoomId
from pdcore.protocol.room import Room
from pdcore.wire import Route

__all__ = ["DOUBT", "SECONDS", "SKEW", "Life", "Lives", "Meaning", "Word", "meaning"]

SECONDS = 60.0
"""How long a room that has ended on one side is remembered for the other."""

SKEW = 2.0
"""Seconds by which the ranks of one decode group may come apart, or a message be under way."""

DOUBT = 0.5
"""Seconds that the end of a life is kept back from who may be of the next one: it may open meanwhile."""

MOST = 16_384
MOST_OF_ONE = 8


@attrs.frozen
class Word:
    """What a decode rank says of a room: it opened it, and if it gave up, when, on prefill's clock."""

    room: RoomId
    route: Route
    rank: int
    generation: Generation
    opened_at: float
    ended_at: float | None = None


def first_reason(
    known: tuple[Word, KVTransferError] | None, word: Word, failure: KVTransferError
) -> KVTransferError:
    """Return why a rank gave a room up: what is ``known`` of that, if anything, was said first."""
    same = known is not None and (known[0].route, known[0].generation) == (word.route, word.generation)
    return known[1] if known is not None and same else failure


@attrs.define(eq=False)
class Life(Room):
    """One life of a room on prefill's side.

    ``heard`` holds the newest generation of each decode rank that said a word of it, ``speakers`` who that
    was by unique rank; ``promised`` who has it. ``doubts`` are what decode ranks gave up before it was
    opened, maybe a life that prefill never had. ``packed``: slots that were handed over, by unique rank.
    """

    heard: dict[Route, Generation] = attrs.field(factory=dict)
    speakers: dict[int, Route] = attrs.field(factory=dict)
    promised: dict[int, tuple[Route, Generation, PeerIdentity]] = attrs.field(factory=dict)
    complete: bool = False
    packed: dict[int, int] = attrs.field(factory=dict)
    cleared_at: float | None = None
    doubts: dict[int, tuple[Word, KVTransferError]] = attrs.field(factory=dict)

    @property
    def mine_before(self) -> float | None:
        """Who opened before this moment opened this life: its id is given out again only once it was cleared.
        One that succeeded may be asked for by another worker before that."""
        return self.cleared_at if self.cleared and self.status is KVPoll.FAILED else self.ended_at

    def hear(self, word: Word) -> None:
        """Note that a rank's word of this life has come."""
        self.heard[word.route] = word.generation
        self.speakers.setdefault(word.rank, word.route)
        self.doubts.pop(word.rank, None)

    def remembered(self) -> Life:
        """Return what is kept of it once it is cleared: nothing that grows with the request."""
        return self

    def is_promised_to(self, route: Route, generation: Generation) -> bool:
        """Whether it is promised to a decode rank's request."""
        return any(there == route and life == generation for there, life, _ in self.promised.values())

    def in_doubt(self, word: Word) -> bool:
        """Whether a word that it awaits may as well be of the next life: nobody of decode was heard of it."""
        return self.cleared and not self.heard and word.opened_at > (self.mine_before or 0.0)

    def may_be_older(self, word: Word) -> bool:
        """Whether what was given up may be an earlier life of its id: this one was not open yet."""
        return word.ended_at is not None and word.ended_at <= self.opened_at

    def first_reason(self, word: Word, failure: KVTransferError) -> KVTransferError:
        """Return why a rank gave it up, or what is in doubt of that: that was said first."""
        return first_reason(self.doubts.get(word.rank), word, failure)

    def believe(self) -> KVTransferError | None:
        """Take what was given up before it opened as its own; return why. None: all came, or it ended."""
        if self.over:
            return None
        failure = next((failure for _, failure in self.doubts.values()), None)
        for word, _ in self.doubts.values():
            self.heard.setdefault(word.route, word.generation)
            self.speakers.setdefault(word.rank, word.route)
        self.doubts = {}
        return failure

    def taken_from(self, word: Word) -> bool:
        """Whether another decode worker has the place of who speaks."""
        promise = self.promised.get(word.rank)
        return self.complete if promise is None else promise[0] != word.route

    def awaits(self, word: Word, now: float) -> bool:
        """Whether it has ended without a word of this rank, and this may be it."""
        ended = self.ended_at
        if ended is None or now - ended > SECONDS:
            return False
        if (said := self.heard.get(word.route)) is not None:  # it was told, and that may be lost
            again = word.generation == said and not self.is_promised_to(word.route, said)
            return again and self.status is KVPoll.FAILED
        mine_before = self.mine_before
        if mine_before is None:
            return False
        if word.opened_at < mine_before:
            return True
        another = self.speakers.get(word.rank, word.route) != word.route
        if another or self.status is KVPoll.SUCCESS or self.taken_from(word):
            return False
        return not self.heard or word.opened_at < ended + SKEW


class Meaning(Enum):
    """What to do with a word."""

    PRESENT = "it is for the open life"
    NEXT = "it is for a life that is yet to be opened"
    OVER = "its life has ended here"
    TAKEN = "another decode worker has the room"
    SUPERSEDED = "decode has given the open life up, and speaks of its next"
    CONTESTED = "it is for the next life, or comes too late for one that another has got"
    OLD = "it was said before"


LATER = (Meaning.NEXT, Meaning.CONTESTED, Meaning.SUPERSEDED)
"""It waits for a life that is not there yet."""
OF_A_LIFE = (Meaning.PRESENT, Meaning.OVER)
"""It is for a life that is, or was."""


def meaning(
    word: Word, present: Life | None, earlier: Sequence[Life], now: float
) -> tuple[Meaning, Life | None]:
    """Return what a word means, and the life that it is about.

    ``present`` is not cleared, but may have ended; ``earlier`` are those that were, the oldest first.
    """
    if earlier:
        awaiting = [life for life in earlier if life.awaits(word, now) and _before(word, present, life)]
        if awaiting:
            # Who gave up may have given up several lives: they come in order. Who asks is at its last one.
            return Meaning.OVER, awaiting[0 if word.ended_at is not None else -1]
    if present is None:
        return Meaning.NEXT, None
    said = present.heard.get(word.route)
    if said is not None and word.generation > said:
        if present.awaits(word, now):
            return Meaning.OVER, present
        return (Meaning.NEXT if present.over else Meaning.SUPERSEDED), present
    if said is not None:
        again = present.over and word.generation == said
        refused = again and not present.is_promised_to(word.route, word.generation)
        return (Meaning.OVER if refused else Meaning.OLD), present
    if not present.over:
        return (Meaning.TAKEN if present.taken_from(word) else Meaning.PRESENT), present
    if present.status is KVPoll.FAILED:
        return Meaning.OVER, present
    ended = present.ended_at
    return (Meaning.TAKEN if ended is None or word.opened_at < ended else Meaning.CONTESTED), present


def _before(word: Word, present: Life | None, earlier: Life) -> bool:
    """Whether a word is older than the present life."""
    if present is None or (earlier.mine_before or 0.0) > word.opened_at:
        return True
    return word.ended_at is not None and word.ended_at <= present.opened_at + SKEW


class Lives:
    """What is remembered of rooms that ended on one side before the other came.

    At most ``MOST`` rooms each way, and ``MOST_OF_ONE`` lives of each, for ``SECONDS``.
    """

    def __init__(self) -> None:
        self._cleared: OrderedDict[RoomId, tuple[Life, ...]] = OrderedDict()
        self._given_up: OrderedDict[RoomId, dict[int, tuple[float, Word, KVTransferError]]] = OrderedDict()

    def cleared(self, life: Life, now: float) -> None:
        """Remember a life that prefill clears."""
        life.cleared, life.cleared_at = True, now
        self._cleared[life.room] = (*self._cleared.pop(life.room, ()), life.remembered())[-MOST_OF_ONE:]
        if len(self._cleared) > MOST:
            self._cleared.popitem(last=False)

    def earlier(self, room: RoomId) -> Sequence[Life]:
        """Return the last lives of a room that were cleared, the oldest first."""
        return self._cleared.get(room, ())

    def hear(self, word: Word, life: Life) -> None:
        """Note that a word was about a life: those before it await the rank no more."""
        for one in self.earlier(word.room):
            if one.generation < life.generation:
                one.heard.setdefault(word.route, word.generation)
        life.hear(word)

    def given_up(
        self, word: Word, failure: KVTransferError, now: float, seconds: float | None = None
    ) -> None:
        """Remember for ``SECONDS`` that a decode rank gave a room up that prefill has yet to open."""
        at = now - (0.0 if seconds is None else SECONDS - seconds)
        ranks = self._given_up.pop(word.room, {})
        known = ranks.get(word.rank)
        why = first_reason(known[1:] if known is not None else None, word, failure)
        self._given_up[word.room] = {**ranks, word.rank: (at, word, why)}
        if len(self._given_up) > MOST:
            self._given_up.popitem(last=False)

    def wanted_again(self, word: Word, life: Life | None = None) -> None:
        """Forget that a rank gave up a room, or this life of it: it, or another at its place, came since."""
        ranks = self._given_up.get(word.room)
        if ranks is not None and word.rank in ranks:
            del ranks[word.rank]
            if not ranks:
                del self._given_up[word.room]
        if life is not None:
            life.doubts.pop(word.rank, None)

    def opened(self, life: Life, now: float) -> bool:
        """Hand what decode has given up of a room to a life that prefill opens now; whether there is any."""
        ranks = self._given_up.pop(life.room, None)
        if ranks is None:
            return False
        life.doubts = {r: (word, why) for r, (at, word, why) in ranks.items() if now - at <= SECONDS}
        return bool(life.doubts)

    def sweep(self, now: float) -> None:
        """Forget what is too old."""
        too_old = now - SECONDS
        while self._cleared and (next(iter(self._cleared.values()))[-1].ended_at or 0.0) < too_old:
            self._cleared.popitem(last=False)
        while self._given_up and max(at for at, *_ in next(iter(self._given_up.values())).values()) < too_old:
            self._given_up.popitem(last=False)
