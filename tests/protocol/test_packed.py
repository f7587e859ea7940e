"""Bytes that go packed, by the machines alone: when a room ends, whose a slot is, and whose a ring."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeVar

import attrs
import numpy as np
import pytest
from two import GIVEN_UP, LONG, Handle, One, Two, one

from pdcore.errors import FailureCode, KVTransferError
from pdcore.layout.staging import StagingLayout
from pdcore.model import Generation, KVPoll, Role, RoomId
from pdcore.protocol import actions as a
from pdcore.protocol import stimuli as s
from pdcore.protocol.groups import GroupKey, Member
from pdcore.protocol.machine import Machine, Settings
from pdcore.protocol.peer import Facts, Fit
from pdcore.protocol.receive.receive_room import ReceiveRoom
from pdcore.wire import (
    Abort,
    Bye,
    Heartbeat,
    Message,
    Packed,
    PairReply,
    PairRequest,
    Quiet,
    RequestMetadata,
    RoomStatus,
    Route,
    Unpacked,
)

INTERVAL = Settings().interval
AUTO, ALWAYS = StagingLayout(4, 2, 4096), StagingLayout(4, 2, 4096, always=True)
BROKEN = KVTransferError(FailureCode.PLAN, "it does not fit", "a test", "-")
T = TypeVar("T")


def having(who: One, staging: StagingLayout | None) -> One:
    """Return a rank with staging rings."""
    description = attrs.evolve(who.description, staging=staging)
    return One(who.name, description, Machine(description, Fit(lambda _: Facts()), Settings()))


def packed(room: RoomId, generation: Generation, slot: int = 0, number: int = 1) -> Packed:
    """Four bytes of a room in a slot."""
    columns = (np.array(column) for column in ([0], [0, 1], [0], [4]))
    return Packed(room, generation, slot, number, *columns)


# --- both sides --------------------------------------------------------------------------------


class PackedTwo(Two):
    """A pair whose deliveries, and what is to be unpacked, wait until a test says what came of them."""

    def __init__(self, staging: StagingLayout = AUTO) -> None:
        super().__init__()
        self.prefill, self.decode = (having(who, staging) for who in (self.prefill, self.decode))
        self.holding = {a.Ship, a.Unpack, a.FreeSlot}
        self.sending, self.receiving = self.offered(RoomId(7)), self.asked(RoomId(7))
        self.settle()

    @property
    def delivery(self) -> a.Ship:
        (do,) = [do for do in self.prefill.held if isinstance(do, a.Ship)]
        return do

    def write(self, slot: int = 0, number: int = 1) -> None:
        """The engine has written a slot."""
        there = packed(RoomId(7), self.receiving.generation, slot, number)
        do = self.delivery
        self.feed(self.prefill, s.SlotWritten(do.delivery, do.route, self.decode.identity, there))

    def all_written(self) -> None:
        self.arrive(self.prefill, self.delivery)
        self.settle()

    @property
    def to_unpack(self) -> list[a.Unpack]:
        return [do for do in self.decode.held if isinstance(do, a.Unpack)]

    def unpack(self, nth: int = 0, failure: KVTransferError | None = None) -> None:
        do = self.to_unpack[nth]
        what = s.BytesUnpacked(do.generation, do.identity, do.packed, failure)
        self.feed(self.decode, what)
        self.settle()

    @property
    def freed(self) -> list[int]:
        return [do.slot for do in self.prefill.held if isinstance(do, a.FreeSlot)]

    def lose(self, who: One, kind: type[Message]) -> int:
        """A cut connection loses what one has said and nobody has got; return how many such."""
        before = len(who.posted)
        who.posted = deque(post for post in who.posted if not isinstance(post[1], kind))
        return before - len(who.posted)

    def ended(self) -> list[KVPoll]:
        return [room.room.status for room in (self.sending, self.receiving)]


def test_a_room_has_arrived_when_all_that_came_packed_is_unpacked_after_the_last_word() -> None:
    two = PackedTwo()
    two.write(0, 1)
    two.write(1, 2)
    two.all_written()
    assert [(do.packed.slot, do.packed.number) for do in two.to_unpack] == [(0, 1), (1, 2)]
    assert two.sending.succeeded
    two.unpack(1)
    assert two.receiving.room.status is KVPoll.TRANSFERRING
    two.unpack(0)
    assert two.receiving.succeeded
    assert two.receiving.room.silent
    assert two.freed == [1, 0]


def test_a_room_has_arrived_when_the_last_word_comes_after_all_is_unpacked() -> None:
    two = PackedTwo()
    for number in (1, 2):
        two.write(0, number)
        two.settle()
        two.unpack(number - 1)
    assert two.freed == [0, 0]
    assert two.receiving.room.status is KVPoll.TRANSFERRING
    two.all_written()
    assert two.ended() == [KVPoll.SUCCESS, KVPoll.SUCCESS]
    assert two.receiving.room.silent


def test_a_room_of_which_nothing_went_packed_ends_with_the_last_word() -> None:
    two = PackedTwo()
    two.all_written()
    assert two.ended() == [KVPoll.SUCCESS, KVPoll.SUCCESS]


def test_the_ring_that_decode_lends_is_the_one_its_bytes_are_taken_from() -> None:
    two = PackedTwo()
    ring = two.prefill.machine.peers.by_route[two.decode.route]
    assert ring.ring is None  # prefill's own is its links' affair
    two.write()
    two.settle()
    (do,) = two.to_unpack
    assert do.ring == two.decode.machine.peers.by_route[two.decode.to(two.prefill)].ring == 0
    assert (do.generation, do.identity) == (two.receiving.generation, two.prefill.identity)


def test_a_lost_word_of_a_slot_is_said_again_and_ends_the_room() -> None:
    two = PackedTwo()
    two.write()
    assert two.lose(two.prefill, Packed) == 1
    two.all_written()
    assert not two.to_unpack
    two.now += INTERVAL - 0.1
    two.feed(two.prefill, s.Tick())
    assert not two.prefill.posted
    two.wait(0.3)
    two.unpack()
    assert two.ended() == [KVPoll.SUCCESS, KVPoll.SUCCESS]
    assert two.freed == [0]
    two.wait(2 * INTERVAL)
    assert len(two.to_unpack) == 1


def test_a_slot_is_spoken_of_once_per_interval() -> None:
    two = PackedTwo()
    two.now = 200.0
    two.write()
    said = [two.lose(two.prefill, Packed)]
    for _ in range(24):
        two.now += INTERVAL / 8
        two.feed(two.prefill, s.Tick())
        said.append(two.lose(two.prefill, Packed))
    assert [moment for moment, times in enumerate(said) if times] == [0, 8, 16, 24]


def test_a_word_said_again_while_its_bytes_are_unpacked_is_neither_answered_nor_done_again() -> None:
    two = PackedTwo()
    two.write()
    two.wait(3 * INTERVAL)
    assert len(two.to_unpack) == 1
    assert not two.freed
    two.unpack()
    assert two.freed == [0]


def test_a_word_said_again_is_answered_again_and_its_bytes_are_not_unpacked_twice() -> None:
    two = PackedTwo()
    two.write()
    two.settle()
    do = two.to_unpack[0]
    two.feed(two.decode, s.BytesUnpacked(do.generation, do.identity, do.packed))
    assert two.lose(two.decode, Unpacked) == 1
    assert not two.freed
    two.wait(INTERVAL + 0.2)
    assert len(two.to_unpack) == 1
    assert two.freed == [0]
    two.all_written()
    assert two.ended() == [KVPoll.SUCCESS, KVPoll.SUCCESS]


def test_a_lost_last_word_is_said_again_with_all_it_said() -> None:
    two = PackedTwo()
    two.write()
    two.settle()
    two.arrive(two.prefill, two.delivery)
    assert two.lose(two.prefill, RoomStatus) == 1
    two.feed(two.decode, s.Reconnected(two.decode.to(two.prefill)))
    two.settle()
    assert not two.receiving.room.over  # what came packed is not unpacked
    two.unpack()
    assert two.receiving.succeeded


def test_and_so_it_is_of_a_room_that_prefill_has_cleared() -> None:
    two = PackedTwo()
    two.write()
    two.settle()
    two.arrive(two.prefill, two.delivery)
    two.lose(two.prefill, RoomStatus)
    two.sending.feed(s.Clear(two.sending.generation))
    two.feed(two.decode, s.Reconnected(two.decode.to(two.prefill)))
    two.settle()
    assert not two.receiving.room.over
    two.unpack()
    assert two.receiving.succeeded


@pytest.mark.parametrize("cleared", [False, True])
def test_a_room_that_decode_gave_up_declines_a_slot_at_once(cleared: bool) -> None:
    two = PackedTwo()
    two.write()
    two.receiving.clear() if cleared else two.receiving.abort()
    two.settle()
    assert not two.to_unpack
    assert two.freed == [0]
    assert two.ended() == [KVPoll.FAILED, KVPoll.FAILED]


def test_a_slot_of_a_room_that_is_over_on_prefill_is_free_and_told_to_nobody() -> None:
    two = PackedTwo()
    two.sending.abort()
    two.settle()
    two.write(1)
    assert two.freed == [1]
    assert not two.prefill.posted
    two.wait(2 * INTERVAL)
    assert not two.to_unpack


def test_a_slot_of_a_delivery_that_is_drained_is_free() -> None:
    two = PackedTwo()
    two.all_written()
    two.write(1)
    assert two.freed == [1]
    assert not two.to_unpack


def test_what_cannot_be_unpacked_fails_the_room_on_both_sides_and_gives_the_slot_back() -> None:
    two = PackedTwo()
    two.write()
    two.settle()
    two.unpack(failure=BROKEN)
    assert two.receiving.room.failure is BROKEN
    assert two.ended() == [KVPoll.FAILED, KVPoll.FAILED]
    assert two.sending.room.failure is not None
    assert two.sending.room.failure.code is FailureCode.PLAN
    assert two.freed == [0]


# --- who may still move bytes ------------------------------------------------------------------


def is_silent(handle: Handle) -> bool:
    return handle.room.over and handle.room.silent


@pytest.mark.parametrize(("staging", "silent"), [(ALWAYS, True), (AUTO, False)])
def test_a_room_whose_writers_always_pack_is_silent_as_soon_as_it_fails(
    staging: StagingLayout, silent: bool
) -> None:
    two = PackedTwo(staging)
    two.feed(two.decode, s.PeerGone(two.decode.to(two.prefill), "it is silent"))
    assert two.receiving.failed
    assert two.receiving.room.silent is silent


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_it_is_enough_that_one_side_packs_always(side: str) -> None:
    two = PackedTwo(AUTO)
    sides = {"prefill": two.prefill, "decode": two.decode}
    setattr(two, side, having(sides[side], ALWAYS))
    other = "decode" if side == "prefill" else "prefill"
    setattr(two, other, having(sides[other], AUTO))
    two.offered(RoomId(8))
    receiving = two.asked(RoomId(8))
    two.settle()
    assert receiving.room.status is KVPoll.TRANSFERRING
    receiving.abort()
    assert is_silent(receiving)


@pytest.mark.parametrize("lost", [False, True])
def test_a_room_is_not_silent_while_its_bytes_are_being_unpacked(lost: bool) -> None:
    two = PackedTwo(ALWAYS)
    two.write()
    two.settle()
    if lost:
        two.feed(two.decode, s.PeerGone(two.decode.to(two.prefill), "it is silent"))
    else:
        two.receiving.abort()
    two.receiving.feed(s.Clear(two.receiving.generation))
    assert two.receiving.failed
    assert not is_silent(two.receiving)
    assert two.decode.machine.room(two.receiving.generation) is not None
    do = two.to_unpack[0]
    done = two.decode.machine.handle(s.BytesUnpacked(do.generation, do.identity, do.packed), two.now)
    assert [type(one) for one in done if not isinstance(one, a.Post)] == [a.Silent, a.Forget]
    assert [do.message for do in done if isinstance(do, a.Post)] == ([] if lost else [Unpacked(0, 1)])
    assert is_silent(two.receiving)
    assert two.decode.machine.room(two.receiving.generation) is None


def test_a_room_is_not_silent_until_the_last_of_several_slots_is_unpacked() -> None:
    two = PackedTwo(ALWAYS)
    two.write(0, 1)
    two.write(1, 2)
    two.settle()
    two.unpack(0, BROKEN)
    assert two.receiving.failed
    assert not is_silent(two.receiving)
    two.unpack(1)
    assert is_silent(two.receiving)
    assert two.freed == [0, 1]


# --- slots that were handed over ---------------------------------------------------------------


def test_a_slot_comes_free_once_for_each_use_and_not_for_an_old_one() -> None:
    two = PackedTwo()
    there = two.decode.route
    for what in (Unpacked(0, 1), Unpacked(1, 1)):
        two.feed(two.prefill, s.Heard(there, what))
    assert not two.freed  # of which nothing was said
    two.write(0, 5)
    two.feed(two.prefill, s.Heard(there, Unpacked(0, 4)))
    two.feed(two.prefill, s.Heard(there, Unpacked(1, 5)))
    assert not two.freed
    two.feed(two.prefill, s.Heard(there, Unpacked(0, 5)))
    assert two.freed == [0]
    two.feed(two.prefill, s.Heard(there, Unpacked(0, 5)))
    assert two.freed == [0]
    two.write(0, 6)
    two.feed(two.prefill, s.Heard(there, Unpacked(0, 5)))
    assert two.freed == [0]
    two.feed(two.prefill, s.Heard(there, Unpacked(0, 6)))
    assert two.freed == [0, 0]


def test_of_slots_of_a_lost_rank_nobody_speaks_any_more() -> None:
    two = PackedTwo()
    two.write()
    two.lose(two.prefill, Packed)
    two.feed(two.prefill, s.PeerGone(two.decode.route, "it is silent"))
    two.prefill.posted.clear()
    two.now += 3 * INTERVAL
    two.feed(two.prefill, s.Tick())
    assert not [post for post in two.prefill.posted if isinstance(post[1], Packed)]


def test_a_slot_that_an_earlier_pairing_had_is_free_by_the_number_of_its_use_alone() -> None:
    two = PackedTwo()
    two.feed(two.prefill, s.Heard(two.decode.route, PairRequest(two.decode.description, 1, 2)))
    assert two.sending.failed
    assert two.prefill.machine.peers.by_route[two.decode.route].ready
    two.write(1, 9)  # on its way since before
    (free,) = [do for do in two.prefill.held if isinstance(do, a.FreeSlot)]
    assert (free.slot, free.number) == (1, 9)  # which no slot of the new pairing was given


def test_a_rank_that_pairs_anew_is_told_what_is_quiet_again() -> None:
    two = PackedTwo()
    two.feed(two.prefill, s.RingQuiet(two.decode.route, two.decode.identity, 3))
    assert [post for post in two.prefill.posted if isinstance(post[1], Quiet)] == [
        (two.decode.route, Quiet(3))
    ]
    two.prefill.posted.clear()
    two.feed(two.prefill, s.RingQuiet(two.decode.route, two.other.identity, 2))
    two.feed(two.prefill, s.PeerGone(two.decode.route, "it is silent"))
    two.feed(two.prefill, s.RingQuiet(two.decode.route, two.decode.identity, 1))
    assert not [post for post in two.prefill.posted if isinstance(post[1], Quiet)]


# --- rings -------------------------------------------------------------------------------------


RANKS = [having(one(f"prefill-{n}", Role.PREFILL, 10 + n), AUTO) for n in range(3)]
FIRST, SECOND, THIRD = RANKS
KEYS = {rank.name: GroupKey("b:1", n) for n, rank in enumerate(RANKS)}


class Decode:
    """A machine that receives, with so many rings; ``done`` is all that it has wanted."""

    def __init__(self, rings: int = 4, *, always: bool = False) -> None:
        self.now = 100.0
        self.machine = having(one("decode", Role.DECODE, 2), StagingLayout(rings, 2, 4096, always)).machine
        self.done: list[a.Action] = []
        self._rooms = 0

    def __call__(self, stimulus: s.Stimulus) -> list[a.Action]:
        actions = self.machine.handle(stimulus, self.now)
        self.done += actions
        return actions

    def hear(self, rank: One, message: Message) -> list[a.Action]:
        return self(s.Heard(self.route(rank), message))

    def route(self, rank: One, nth: int = -1) -> Route:
        """The connection that was dialled to a rank, by default the last one."""
        dials = [do for do in self.done if isinstance(do, a.Dial)]
        return [do.route for do in dials if do.identity.address == rank.identity.address][nth]

    def open(self, *ranks: One) -> ReceiveRoom:
        """A room that looks for ranks, which are found."""
        self._rooms += 1
        generation, key = Generation(self._rooms), KEYS[ranks[0].name]
        self(s.OpenReceive(RoomId(generation), generation, self.now + LONG, key))
        self(s.Choose(generation, key))
        members = tuple(Member(rank.identity, n) for n, rank in enumerate(ranks))
        self(s.GroupFound(key, members))
        return self.machine.receiving.rooms[generation]

    def pair(self, *ranks: One) -> None:
        for rank in ranks:
            self.answer(rank)
            self(s.PeerConnected(self.route(rank), rank.identity))

    def answer(self, rank: One) -> None:
        """Have a rank answer the last request to pair."""
        number = self.said(rank, PairRequest)[-1].number
        self.hear(rank, PairReply(rank.description, number=number))

    def asked(self, *ranks: One) -> ReceiveRoom:
        """A room that ranks were asked for."""
        room = self.open(*ranks)
        self.pair(*ranks)
        pages = np.array([room.generation])
        wanted = RequestMetadata(room.room, room.generation, pages, None, (), 0, 0.0)
        self(s.Place(room.generation, wanted))
        return room

    def lose(self, rank: One) -> None:
        self(s.PeerGone(self.route(rank), "it is silent"))

    @property
    def lent(self) -> list[int | None]:
        """The rings that were lent, in order."""
        posts = [do.message for do in self.done if isinstance(do, a.Post)]
        return [message.ring for message in posts if isinstance(message, PairRequest)]

    @property
    def in_doubt(self) -> int:
        return self.machine.peers.rings.in_doubt

    def said(self, rank: One, kind: type[T]) -> list[T]:
        posts = [do for do in self.done if isinstance(do, a.Post)]
        posts = [post for post in posts if post.route.startswith(rank.route + b"#")]
        return [post.message for post in posts if isinstance(post.message, kind)]


def success(room: ReceiveRoom, packed: int = 0) -> RoomStatus:
    return RoomStatus(room.room, room.generation, 0, KVPoll.SUCCESS, drained=True, packed=packed)


def unpacked(do: a.Unpack) -> s.BytesUnpacked:
    return s.BytesUnpacked(do.generation, do.identity, do.packed)


def unpacks(actions: Sequence[a.Action]) -> list[a.Unpack]:
    return [do for do in actions if isinstance(do, a.Unpack)]


def test_each_rank_has_a_ring_of_its_own() -> None:
    decode = Decode()
    decode.asked(FIRST, SECOND)
    decode.asked(THIRD)
    assert decode.lent == [0, 1, 2]
    assert decode.in_doubt == 0


def test_a_room_of_several_ranks_waits_for_what_each_has_packed() -> None:
    decode = Decode()
    room = decode.asked(FIRST, SECOND)
    both = [decode.hear(rank, packed(room.room, room.generation)) for rank in (FIRST, SECOND)]
    (first,), (second,) = map(unpacks, both)  # of one number, but not of one rank
    assert (first.ring, second.ring) == (0, 1)
    decode.hear(FIRST, success(room, 1))
    decode(unpacked(first))
    decode.hear(SECOND, success(room, 1))
    assert not room.over
    decode(unpacked(second))
    assert room.status is KVPoll.SUCCESS


@pytest.mark.parametrize("stale", ["another room", "another rank", "forgotten"])
def test_a_slot_of_which_nobody_knows_is_declined(stale: str) -> None:
    decode = Decode(always=True)
    room = decode.asked(FIRST)
    decode.asked(SECOND)
    who, generation = FIRST, room.generation
    if stale == "another room":
        generation = Generation(99)
    elif stale == "another rank":
        who = SECOND
    else:
        decode(s.GiveUp(generation, GIVEN_UP))
        decode(s.Clear(generation))
    done = decode.hear(who, packed(room.room, generation, 1, 8))
    assert not unpacks(done)
    assert decode.said(who, Unpacked) == [Unpacked(1, 8)]
    assert decode.machine.counts == {"stale": 1}


def test_a_lost_ranks_ring_is_in_doubt_and_the_next_pairing_has_another() -> None:
    decode = Decode(2)
    decode.asked(FIRST)
    decode.lose(FIRST)
    assert decode.in_doubt == 1
    assert decode.machine.peers.rings.waits_for(FIRST.identity)
    assert not decode.machine.peers.rings.waits_for(SECOND.identity)
    decode.asked(FIRST)
    assert decode.lent == [0, 1]
    decode.asked(SECOND)
    assert decode.lent == [0, 1, None]  # where bytes may go otherwise


@pytest.mark.parametrize("how", ["asked", "answered"])
def test_a_rank_that_never_was_paired_leaves_no_doubt(how: str) -> None:
    decode = Decode(1)
    decode.open(FIRST)
    if how == "answered":
        decode.answer(FIRST)
    decode.lose(FIRST)
    assert decode.in_doubt == 0
    decode.asked(SECOND)
    assert decode.lent == [0, 0]


def test_a_proof_brings_back_the_rings_that_it_is_about() -> None:
    decode = Decode(3)
    revokes = []
    for _ in range(2):
        decode.asked(FIRST)
        decode.lose(FIRST)
        revokes.append([do for do in decode.done if isinstance(do, a.Revoke)][-1])
    assert decode.in_doubt == 2
    decode(s.WriterSilent(SECOND.identity, revokes[1].upto))
    assert decode.in_doubt == 2
    decode(s.WriterSilent(FIRST.identity, revokes[0].upto))
    assert decode.in_doubt == 1
    decode.asked(SECOND)
    decode.asked(THIRD)
    assert decode.lent == [0, 1, 2, 0]  # but not the one of the second life
    decode(s.WriterSilent(FIRST.identity, revokes[1].upto))
    assert decode.in_doubt == 0


def test_the_end_of_its_process_brings_all_rings_of_a_rank_back() -> None:
    decode = Decode(3)
    for _ in range(2):
        decode.asked(FIRST)
        decode.lose(FIRST)
    decode(s.WriterSilent(FIRST.identity, None))
    assert decode.in_doubt == 0


def test_when_the_engine_is_closed_no_ring_is_in_doubt() -> None:
    decode = Decode(3)
    for rank in (FIRST, SECOND):
        decode.asked(rank)
        decode.lose(rank)
    decode(s.AllSilent())
    assert decode.in_doubt == 0


@pytest.mark.parametrize(
    ("own", "drained", "in_doubt"), [(True, True, 0), (True, False, 1), (False, True, 1)]
)
def test_a_rank_that_leaves_drained_leaves_no_doubt(own: bool, drained: bool, in_doubt: int) -> None:
    decode = Decode(2)
    decode.asked(FIRST)
    life = FIRST.identity.incarnation if own else THIRD.identity.incarnation
    decode.hear(FIRST, Bye(life, "it shut down in order", drained=drained))
    assert decode.in_doubt == in_doubt


def test_a_rank_that_leaves_drained_brings_back_what_it_had_before() -> None:
    decode = Decode(2)
    decode.asked(FIRST)
    decode.lose(FIRST)
    decode.asked(FIRST)
    decode.hear(FIRST, Bye(FIRST.identity.incarnation, "it shut down in order", drained=True))
    assert decode.in_doubt == 0


def test_a_rank_that_pairs_anew_says_itself_that_a_ring_is_quiet() -> None:
    decode = Decode(2)
    decode.asked(FIRST)
    decode.lose(FIRST)
    decode.asked(FIRST)
    decode.hear(FIRST, Quiet(1))  # the one that it has now
    assert decode.in_doubt == 1
    decode.hear(FIRST, Quiet(0))
    assert decode.in_doubt == 0
    decode.hear(FIRST, Quiet(0))
    decode.asked(SECOND)
    decode.asked(THIRD)
    assert decode.lent == [0, 1, 0, None]  # said twice, it is lent once


def test_another_rank_says_nothing_of_a_ring() -> None:
    decode = Decode(3)
    decode.asked(FIRST)
    decode.lose(FIRST)
    decode.asked(SECOND)
    decode.hear(SECOND, Quiet(0))
    assert decode.in_doubt == 1


def test_where_all_must_go_packed_a_room_fails_at_once_if_no_ring_is_left() -> None:
    decode = Decode(1, always=True)
    decode.asked(FIRST)
    room = decode.open(SECOND)
    assert room.failure is not None
    assert room.failure.code is FailureCode.ENGINE
    assert room.failure.happened == (
        f"no staging ring is left for {SECOND.identity}, and transfer.staging is 'always'"
    )
    assert room.failure.there_is == "1 rings, of which 0 wait until lost peers are known to write no more"
    assert "transfer.staging_rings" in room.failure.to_do
    assert room.silent
    assert not decode.said(SECOND, PairRequest)
    decode.lose(FIRST)
    assert (again := decode.open(SECOND)).failure is not None
    assert "1 wait until lost peers" in again.failure.there_is
    decode(s.WriterSilent(FIRST.identity, None))
    assert not decode.asked(SECOND).over  # nobody holds the refusal against it
    assert sorted(told.room for told in decode.said(SECOND, Abort)) == [room.room, again.room]


NEXT = having(one("prefill-0", Role.PREFILL, 99), AUTO)
"""The next life at the address of the first rank."""


def test_who_runs_in_the_place_of_who_had_a_ring_is_lent_one_and_keeps_it_when_it_is_needed() -> None:
    decode = Decode(2, always=True)
    room = decode.asked(FIRST)
    decode.hear(FIRST, Heartbeat(NEXT.identity.incarnation))
    assert room.over
    assert decode.lent == [0, 1]
    assert decode.in_doubt == 1
    decode.pair(NEXT)
    assert [told.room for told in decode.said(NEXT, Abort) if not told.asked] == [room.room]
    needs = decode.open(NEXT)
    assert decode.lent == [0, 1]  # it is paired
    (peer,) = decode.machine.peers.by_route.values()
    assert (peer.ring, peer.number, peer.packs) == (1, 2, True)
    decode.lose(NEXT)
    assert needs.over
    assert decode.in_doubt == 2


def test_who_runs_in_the_place_of_who_had_none_is_lent_none() -> None:
    decode = Decode(1)
    decode.asked(SECOND)
    room = decode.asked(FIRST)
    decode.lose(SECOND)
    decode(s.WriterSilent(SECOND.identity, None))
    decode.hear(FIRST, Heartbeat(NEXT.identity.incarnation))
    decode.pair(NEXT)
    assert [told.room for told in decode.said(NEXT, Abort) if not told.asked] == [room.room]
    assert decode.lent == [0, None, None]


def test_where_all_must_go_packed_who_runs_in_the_place_of_another_is_told_once_a_ring_is_left() -> None:
    decode = Decode(1, always=True)
    room = decode.asked(FIRST)
    decode.hear(FIRST, Heartbeat(NEXT.identity.incarnation))
    assert decode.lent == [0]
    assert decode.in_doubt == 1
    assert not decode.machine.peers.by_route
    decode(s.WriterSilent(FIRST.identity, None))
    assert not decode.asked(NEXT).over
    assert [told.room for told in decode.said(NEXT, Abort) if not told.asked] == [room.room]


def test_a_slot_is_given_back_over_the_connection_that_there_is_now() -> None:
    decode = Decode(2)
    room = decode.asked(FIRST)
    (do,) = unpacks(decode.hear(FIRST, packed(room.room, room.generation)))
    decode.lose(FIRST)
    decode.asked(FIRST)
    decode(unpacked(do))
    (post,) = [do for do in decode.done if isinstance(do, a.Post) and isinstance(do.message, Unpacked)]
    assert post.route == decode.route(FIRST, 1) != decode.route(FIRST, 0)


def test_a_ring_that_is_lent_back_and_forth_is_never_lent_twice_at_once() -> None:
    decode = Decode(2)
    random = np.random.default_rng(1)
    paired: set[str] = set()
    for _ in range(200):
        rank = RANKS[int(random.integers(3))]
        if rank.name not in paired:
            decode.asked(rank)
            paired.add(rank.name)
        elif random.integers(2):
            decode.lose(rank)
            paired.discard(rank.name)
        else:
            decode(s.WriterSilent(rank.identity, None))
        rings = [p.ring for p in decode.machine.peers.by_route.values() if p.ring is not None]
        assert len(rings) == len(set(rings))
        assert len(rings) + decode.in_doubt <= 2
    assert set(decode.lent) == {0, 1, None}


def test_without_rings_none_is_lent() -> None:
    machine = having(one("decode", Role.DECODE, 2), None).machine
    key = KEYS[FIRST.name]
    machine.handle(s.OpenReceive(RoomId(1), Generation(1), LONG, key), 1.0)
    machine.handle(s.Choose(Generation(1), key), 1.0)
    done = machine.handle(s.GroupFound(key, (Member(FIRST.identity, 0),)), 1.0)
    posts = [do.message for do in done if isinstance(do, a.Post)]
    assert [message.ring for message in posts if isinstance(message, PairRequest)] == [None]


def test_prefill_is_told_which_ring_it_has() -> None:
    prefill, decode = having(one("prefill", Role.PREFILL, 1), AUTO), having(one("d", Role.DECODE, 2), AUTO)
    done = prefill.machine.handle(s.Heard(decode.route, PairRequest(decode.description, 3)), 1.0)
    assert [do.ring for do in done if isinstance(do, a.Connect)] == [3]
