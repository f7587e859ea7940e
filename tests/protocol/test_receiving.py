"""Decode's side of the machine, by what comes in and what it then wants: groups, peers, rows, words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import pytest
from two import GIVEN_UP, LONG, One, one

from pdcore.errors import FailureCode, KVTransferError, Misfit
from pdcore.model import Generation, KVPoll, Role, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.topology import DPChoice
from pdcore.protocol import actions as a
from pdcore.protocol import stimuli as s
from pdcore.protocol.groups import GroupKey, Member
from pdcore.protocol.machine import Machine, Settings
from pdcore.protocol.peer import Fit
from pdcore.protocol.receive.receive_room import ReceiveRoom
from pdcore.wire import (
    Abort,
    AuxRow,
    Bye,
    Failure,
    Heartbeat,
    Message,
    PairReply,
    PairRequest,
    Released,
    RequestMetadata,
    RoomStatus,
    Route,
)

RANKS = [one(f"prefill-{n}", Role.PREFILL, 10 + n) for n in range(3)]
FIRST, SECOND, THIRD = RANKS
BY_ROOM = GroupKey("b:1", DPChoice.BY_ROOM, RoomId(7))
ZERO, ONE = GroupKey("b:1", 0), GroupKey("b:1", 1)
NONE = Fit()
MISFIT = Misfit("layout", "this", "that", "make them match")
T = TypeVar("T")
NOT_THERE = KVTransferError(FailureCode.AUX, "no row", "none", "-")


class Decode:
    """A machine that receives; ``done`` is all that it has wanted."""

    def __init__(self, fit: Fit = NONE) -> None:
        self.now = 100.0
        self.counts: Counter[str] = Counter()
        self.machine = Machine(one("decode", Role.DECODE, 2).description, fit, Settings(), self.counts)
        self.done: list[a.Action] = []

    def __call__(self, stimulus: s.Stimulus) -> list[a.Action]:
        actions = self.machine.handle(stimulus, self.now)
        self.done += actions
        return actions

    def open(self, room: int = 7, default: GroupKey = ZERO) -> ReceiveRoom:
        generation = Generation(len(self.of(a.Begun)) + 1)
        self(s.OpenReceive(RoomId(room), generation, self.now + LONG, default))
        return self.machine.receiving.rooms[generation]

    def choose(self, room: ReceiveRoom, key: GroupKey = ZERO) -> list[a.Action]:
        return self(s.Choose(room.generation, key))

    def place(self, room: ReceiveRoom, aux: int | None = None) -> list[a.Action]:
        pages = np.array([room.generation])
        return self(
            s.Place(room.generation, RequestMetadata(room.room, room.generation, pages, aux, (), 0, 0.0))
        )

    def find(self, key: GroupKey, ranks: Sequence[One] = RANKS[:1], known_as: GroupKey | None = None) -> None:
        members = tuple(Member(rank.identity, n) for n, rank in enumerate(ranks))
        self(s.GroupFound(key, members, (), known_as))

    def accept(self, *ranks: One) -> None:
        """Have ranks answer the request to pair, and the engine admit them."""
        for rank in ranks or (FIRST,):
            self.hear(rank, PairReply(rank.description))
            self(s.PeerConnected(self.route(rank), rank.identity))

    def route(self, rank: One, nth: int = -1) -> Route:
        """The connection that was dialled to a rank, by default the last one."""
        return [do.route for do in self.of(a.Dial) if do.identity.address == rank.identity.address][nth]

    def hear(self, rank: One, message: Message, nth: int = -1) -> list[a.Action]:
        return self(s.Heard(self.route(rank, nth), message))

    def asked(self, aux: int | None = None) -> ReceiveRoom:
        """A room that the first rank was asked for."""
        room = self.open()
        self.choose(room)
        self.find(ZERO)
        self.accept()
        self.place(room, aux)
        return room

    def of(self, kind: type[T]) -> list[T]:
        return [action for action in self.done if isinstance(action, kind)]

    def said(self, rank: One, kind: type[T]) -> list[T]:
        posts = [post for post in self.of(a.Post) if post.route.startswith(rank.route + b"#")]
        return [post.message for post in posts if isinstance(post.message, kind)]


def ended(room: ReceiveRoom, status: KVPoll, *, drained: bool = True) -> RoomStatus:
    failure = Failure.of(GIVEN_UP) if status is KVPoll.FAILED else None
    return RoomStatus(room.room, room.generation, 0, status, drained, failure)


# --- groups ----------------------------------------------------------------------------------


def test_ranks_are_dialled_and_asked_and_the_request_goes_out_once_all_are_paired() -> None:
    decode = Decode()
    room = decode.open()
    decode.choose(room)
    decode.place(room)
    decode.find(ZERO, RANKS[:2])
    assert [do.identity for do in decode.of(a.Dial)] == [FIRST.identity, SECOND.identity]
    decode.accept(FIRST)
    assert not decode.said(FIRST, RequestMetadata)
    assert room.first_at == 0
    decode.accept(SECOND)
    assert all(len(decode.said(rank, RequestMetadata)) == 1 for rank in (FIRST, SECOND))
    assert room.status is KVPoll.TRANSFERRING
    kinds = [type(do) for do in decode.done]
    assert kinds.index(a.Asked) < max(n for n, do in enumerate(decode.done) if isinstance(do, a.Post))


def test_a_group_that_was_looked_for_by_a_room_is_known_by_its_dp_rank() -> None:
    decode = Decode()
    decode.choose(decode.open(default=BY_ROOM), BY_ROOM)
    decode.find(BY_ROOM, known_as=ONE)
    assert set(decode.machine.peers.groups) == {ONE}
    looked = len(decode.of(a.Find))
    decode.choose(decode.open(8, ONE), ONE)
    assert len(decode.of(a.Find)) == looked
    decode.accept()
    assert [room.status for room in decode.machine.receiving.rooms.values()] == [KVPoll.WAITING_FOR_INPUT] * 2


def test_one_that_is_looked_for_by_its_dp_rank_as_well_stays_looked_after_until_it_is_ready() -> None:
    decode = Decode()
    named, by_room = decode.open(8, ONE), decode.open(7, BY_ROOM)
    decode.choose(named, ONE)
    decode.choose(by_room, BY_ROOM)
    decode.find(BY_ROOM, known_as=ONE)
    decode.now += Settings().pairing  # nobody answers, and the other look-up doesn't end
    decode(s.Tick())
    for room in (named, by_room):
        assert room.failure is not None
        assert room.failure.happened == "prefill DP rank 1 of b:1 did not pair in time"
        assert room.failure.code is FailureCode.DEADLINE
    decode(s.Tick())
    assert not decode.machine.peers.groups


def test_and_is_forgotten_by_its_room_when_both_are_ready() -> None:
    decode = Decode()
    decode.choose(decode.open(8, ONE), ONE)
    decode.choose(decode.open(7, BY_ROOM), BY_ROOM)
    decode.find(BY_ROOM, known_as=ONE)
    decode.find(ONE)
    decode.accept()
    decode(s.Tick())
    assert set(decode.machine.peers.groups) == {ONE}


def test_a_group_that_cannot_be_found_fails_who_waits_and_is_looked_for_again_by_the_next() -> None:
    decode = Decode()
    room = decode.open()
    decode.choose(room)
    decode(s.GroupFailed(ZERO, GIVEN_UP))
    assert room.failure is GIVEN_UP
    decode.choose(decode.open(8))
    assert len(decode.of(a.Find)) == 2


def test_who_does_not_fit_together_is_said_to_all_members() -> None:
    decode = Decode(Fit(covers=lambda senders: (MISFIT,) * (len(senders) == 2)))
    room = decode.open()
    decode.choose(room)
    decode.find(ZERO, RANKS[:2])
    decode.accept(FIRST, SECOND)
    assert room.failure is not None
    assert room.failure.code is FailureCode.INCOMPATIBLE
    assert "layout" in str(room.failure)
    assert decode.said(FIRST, Abort)
    assert decode.said(SECOND, Abort)
    decode.choose(decode.open(8))
    assert len(decode.of(a.Find)) == 2  # others may be there by now


@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_who_does_not_fit_is_lost_and_told_of_the_room_before_it_is_let_go(who: str) -> None:
    decode = Decode(Fit(suits=lambda _: (MISFIT,)) if who == "ours" else NONE)
    room = decode.open()
    decode.choose(room)
    decode.find(ZERO)
    decode.hear(FIRST, PairReply(FIRST.description, () if who == "ours" else (MISFIT,)))
    lost = decode.of(a.Lost)
    assert room.failure is not None
    assert room.failure.code is FailureCode.INCOMPATIBLE
    assert lost[0].stays
    assert not lost[0].paired
    kinds = [type(do) for do in decode.done]
    (word,) = [
        n for n, do in enumerate(decode.done) if isinstance(do, a.Post) and isinstance(do.message, Abort)
    ]
    assert word < kinds.index(a.Lost)
    assert not decode.of(a.Revoke)


def test_what_describes_this_side_must_fit_a_message() -> None:
    decode = Decode()
    description: PeerDescription = decode.machine.ours
    object.__setattr__(description, "endpoint", b"x" * (2**20 + 1))
    room = decode.open()
    decode.choose(room)
    decode.find(ZERO)
    assert room.failure is not None
    assert room.failure.code is FailureCode.INCOMPATIBLE
    assert "control.max_message_bytes is 1048576" in str(room.failure)
    assert not decode.said(FIRST, PairRequest)


# --- words -----------------------------------------------------------------------------------


def test_one_that_is_asked_for_and_given_up_before_it_is_found_is_told_once_it_is_paired() -> None:
    decode = Decode()
    room = decode.open()
    decode(s.GiveUp(room.generation, GIVEN_UP))
    decode(s.Clear(room.generation))
    decode.find(ZERO)
    assert not decode.said(FIRST, Abort)
    decode.accept()
    (word,) = decode.said(FIRST, Abort)
    assert not word.asked
    assert word.generation == room.generation


@pytest.mark.parametrize(("key", "times"), [(ZERO, 1), (ONE, 2)])
def test_a_failed_room_whose_replica_is_chosen_late_is_told_there_too(key: GroupKey, times: int) -> None:
    decode = Decode()
    room = decode.open()
    decode(s.GiveUp(room.generation, GIVEN_UP))
    decode.choose(room, key)
    looked = [do.key for do in decode.of(a.Find)]
    assert looked == list(dict.fromkeys([ZERO, key]))
    for number, found in enumerate(looked):
        decode.find(found, RANKS[number : number + 1])
        decode.accept(RANKS[number])
    assert sum(len(decode.said(rank, Abort)) for rank in RANKS) == times


def test_at_the_end_nobody_is_looked_for_any_more() -> None:
    decode = Decode()
    room, other = decode.open(), decode.open(8)
    decode.choose(other, ONE)
    assert [do.key for do in decode.of(a.Find)] == [ONE]
    decode(s.Close(GIVEN_UP))
    decode.choose(room)
    assert [do.key for do in decode.of(a.Find)] == [ONE]
    assert room.failure is GIVEN_UP
    assert other.failure is GIVEN_UP


def test_only_who_can_be_reached_is_reminded_of_a_failed_room() -> None:
    decode = Decode()
    room = decode.asked()
    decode(s.GiveUp(room.generation, GIVEN_UP))
    assert len(decode.said(FIRST, Abort)) == 1
    decode(s.PeerGone(decode.route(FIRST), "it is silent"))
    for _ in range(3):
        decode.now += Settings().interval
        decode(s.Tick())
    assert len(decode.said(FIRST, Abort)) == 1
    decode.choose(decode.open(8))
    decode.find(ZERO)
    decode.accept()
    decode.now += Settings().interval
    decode(s.Tick())
    assert [told.asked for told in decode.said(FIRST, Abort)] == [True, False, True]


def test_a_word_of_an_earlier_room_is_taken_while_its_process_pairs_anew() -> None:
    decode = Decode()
    room = decode.asked()
    decode(s.PeerGone(decode.route(FIRST), "it is silent"))
    assert room.writers
    decode.choose(decode.open(8))
    decode.find(ZERO)
    decode.hear(FIRST, Released(room.room, room.generation))
    assert room.silent
    assert not decode.counts


def test_a_prefill_rank_that_asks_to_be_paired_is_not_heard() -> None:
    decode = Decode()
    room = decode.asked()
    assert not decode.hear(FIRST, PairRequest(FIRST.description))
    assert not decode(s.Heard(SECOND.route, PairRequest(SECOND.description)))
    assert decode.counts == {"unexpected": 2}
    assert not room.over


# --- peers that come and go --------------------------------------------------------------------


def test_a_pairing_is_told_of_once() -> None:
    decode = Decode()
    decode.asked()
    decode(s.PeerConnected(decode.route(FIRST), FIRST.identity))
    assert [do.identity for do in decode.of(a.Paired)] == [FIRST.identity]


def test_one_that_is_lost_while_it_is_admitted_is_revoked_and_never_was_paired() -> None:
    decode = Decode()
    room = decode.open()
    decode.choose(room)
    decode.find(ZERO)
    decode.hear(FIRST, PairReply(FIRST.description))
    decode(s.PeerGone(decode.route(FIRST), "it is silent"))
    decode(s.PeerConnected(decode.route(FIRST), FIRST.identity))
    assert [do.identity for do in decode.of(a.Revoke)] == [FIRST.identity]
    assert not decode.of(a.Paired)
    assert room.status is KVPoll.FAILED


def test_a_proof_of_silence_is_about_the_rooms_that_it_was_asked_for() -> None:
    decode = Decode()
    old = decode.asked()
    decode(s.PeerGone(decode.route(FIRST), "it is silent"))
    (revoke,) = decode.of(a.Revoke)
    new = decode.open(8)
    decode.choose(new)
    decode.find(ZERO)
    decode.accept()
    decode.place(new)
    decode(s.WriterSilent(FIRST.identity, revoke.upto))
    assert old.silent
    assert new.writers == {FIRST.identity}


# --- who runs in the place of who was meant ----------------------------------------------------


ANOTHER = one("prefill-0", Role.PREFILL, 99)
"""The next life at the address of the first rank."""
STRANGER = Bye(ANOTHER.identity.incarnation, "it doesn't know this decode worker", drained=False)
SPEAKS: dict[str, tuple[Message, ...]] = {
    "answers the request to pair": (PairReply(ANOTHER.description),),
    "sends a heartbeat": (Heartbeat(ANOTHER.identity.incarnation),),
    "knows nobody": (STRANGER,),
    "refuses a request, and knows nobody": (
        RoomStatus(RoomId(7), Generation(1), 0, KVPoll.FAILED, True, Failure.of(GIVEN_UP)),
        STRANGER,
    ),
}


@pytest.mark.parametrize("cleared", [True, False])
@pytest.mark.parametrize("aborted", [True, False])
@pytest.mark.parametrize("how", SPEAKS)
def test_who_runs_in_the_place_of_who_was_meant_is_dialled_and_told(
    how: str, aborted: bool, cleared: bool
) -> None:
    decode, words = Decode(), SPEAKS[how]
    room = decode.open()
    decode.choose(room)
    decode.find(ZERO)
    if not isinstance(words[0], PairReply):
        decode.accept()
        decode.place(room)
    if aborted:
        decode(s.GiveUp(room.generation, GIVEN_UP))
    for word in words:
        decode.hear(FIRST, word, nth=0)
        if cleared:
            decode(s.Clear(room.generation))
    assert room.status is KVPoll.FAILED
    assert [do.identity for do in decode.of(a.Dial)] == [FIRST.identity, ANOTHER.identity]
    assert not [word for word in decode.said(ANOTHER, Abort) if not word.asked]
    assert not decode.of(a.Lost)[0].stays
    decode.accept(ANOTHER)
    (told,) = [word for word in decode.said(ANOTHER, Abort) if not word.asked]
    assert (told.room, told.generation) == (room.room, room.generation)
    assert room.failure is not None
    assert told.failure.error().happened == room.failure.happened
    decode.choose(decode.open(8))
    decode.find(ZERO, [ANOTHER])
    assert len(decode.of(a.Dial)) == 2  # it is paired


def test_nobody_is_dialled_in_the_place_of_who_had_no_room() -> None:
    decode = Decode()
    room = decode.asked()
    decode.hear(FIRST, ended(room, KVPoll.SUCCESS))
    decode(s.Clear(room.generation))
    decode.hear(FIRST, STRANGER)
    assert decode.of(a.Lost)
    assert len(decode.of(a.Dial)) == 1


def test_who_has_another_name_each_time_is_dialled_no_more_until_it_is_needed() -> None:
    decode = Decode()
    room = decode.asked()
    decode.hear(FIRST, STRANGER)
    decode.hear(FIRST, PairReply(THIRD.description))
    assert len(decode.of(a.Dial)) == 2
    decode.choose(decode.open(8))
    decode.find(ZERO)
    decode.accept()
    assert [told.room for told in decode.said(FIRST, Abort)] == [room.room]


def test_who_is_dialled_next_is_told_what_was_given_up_unless_its_id_is_in_use_again() -> None:
    decode = Decode()
    rooms = [decode.open(n) for n in (7, 8)]
    for room in rooms:
        decode.choose(room)
        decode.place(room)
    decode.find(ZERO)
    decode.accept()
    decode(s.PeerGone(decode.route(FIRST), "its process has ended"))
    for room in rooms:
        decode(s.Clear(room.generation))
    assert len(decode.of(a.Dial)) == 1
    again = decode.open(7)
    decode.choose(again)
    decode.find(ZERO, [ANOTHER])
    decode.accept(ANOTHER)
    assert [told.room for told in decode.said(ANOTHER, Abort)] == [8]
    assert not again.over


@pytest.mark.parametrize("lost", [False, True])
def test_of_an_id_that_was_used_again_nobody_is_owed_what_was_given_up_before(lost: bool) -> None:
    decode = Decode()
    room = decode.asked()
    decode(s.GiveUp(room.generation, GIVEN_UP))
    decode.hear(FIRST, Released(room.room, room.generation))
    decode(s.Clear(room.generation))
    if lost:
        decode(s.PeerGone(decode.route(FIRST), "its process has ended"))
        assert decode.machine.peers.dialled.owed("prefill-0") == 1
    again = decode.open()
    if not lost:
        decode.choose(again)
        decode.place(again)
        decode.hear(FIRST, ended(again, KVPoll.SUCCESS))
    decode(s.Clear(again.generation))
    if not lost:
        decode.hear(FIRST, Heartbeat(ANOTHER.identity.incarnation))
    assert [told.generation for told in decode.said(FIRST, Abort)] == [room.generation]
    assert decode.machine.peers.dialled.owed("prefill-0") == 0
    assert len(decode.of(a.Dial)) == 1


def test_what_nobody_waits_for_any_more_is_not_kept() -> None:
    decode = Decode()
    decode.asked()
    decode(s.PeerGone(decode.route(FIRST), "its process has ended"))
    assert decode.machine.peers.dialled.owed("prefill-0") == 1
    decode.now += LONG
    decode(s.Tick())
    assert decode.machine.peers.dialled.owed("prefill-0") == 0


@pytest.mark.parametrize(
    "word", [STRANGER, PairReply(ANOTHER.description), Heartbeat(ANOTHER.identity.incarnation)]
)
def test_what_was_said_over_an_earlier_connection_is_nobodys_word(word: Message) -> None:
    decode = Decode()
    decode.asked()
    decode(s.PeerGone(decode.route(FIRST), "it is silent"))
    room = decode.open(8)
    decode.choose(room)
    decode.find(ZERO)
    assert decode.route(FIRST, 0) != decode.route(FIRST, 1)
    decode.hear(FIRST, word, nth=0)
    decode.accept()
    assert room.status is KVPoll.WAITING_FOR_INPUT


def test_a_life_that_was_refused_is_asked_again_over_the_connection_that_it_knows() -> None:
    decode = Decode()
    decode.choose(decode.open())
    decode.find(ZERO)
    decode.hear(FIRST, PairReply(FIRST.description, (MISFIT,)))
    decode.choose(decode.open(8))
    decode.find(ZERO)
    assert decode.route(FIRST, 0) == decode.route(FIRST, 1)
    decode.hear(FIRST, PairReply(FIRST.description, (MISFIT,)))
    decode.choose(decode.open(9))
    decode.find(ZERO, [ANOTHER])
    assert decode.route(FIRST, 1) != decode.route(FIRST, 2)


def test_an_answer_to_an_earlier_request_over_the_same_connection_is_not_taken_for_the_next() -> None:
    decode = Decode()
    decode.choose(decode.open())
    decode.find(ZERO)
    (first,) = decode.said(FIRST, PairRequest)
    decode.hear(FIRST, PairReply(FIRST.description, (MISFIT,)))
    room = decode.open(8)
    decode.choose(room)
    decode.find(ZERO)
    decode.hear(FIRST, PairReply(FIRST.description, (MISFIT,), number=first.number))
    assert not room.over
    decode.accept()
    assert room.status is KVPoll.WAITING_FOR_INPUT


@pytest.mark.parametrize("own", [True, False])
def test_a_farewell_proves_only_its_own_life_silent(own: bool) -> None:
    decode = Decode()
    room = decode.asked()
    life = FIRST.identity.incarnation if own else THIRD.identity.incarnation
    decode.hear(FIRST, Bye(life, "it shut down in order", drained=True))
    assert room.status is KVPoll.FAILED
    assert room.silent is own
    assert room.writers == (set() if own else {FIRST.identity})


# --- rows that come by message -----------------------------------------------------------------


def test_a_slot_is_not_free_while_a_row_that_came_is_written() -> None:
    decode = Decode()
    room = decode.asked(aux=3)
    decode.hear(FIRST, AuxRow(room.room, room.generation, b"row"))
    assert [(do.slot, do.row) for do in decode.of(a.WriteRow)] == [(3, b"row")]
    decode.hear(FIRST, ended(room, KVPoll.FAILED))
    decode(s.Clear(room.generation))
    assert room.over
    assert not decode.of(a.Silent)
    assert not decode.of(a.Forget)
    done = decode(s.RowWritten(room.generation))
    assert [type(do) for do in done] == [a.Silent, a.Forget]
    assert room.silent


def test_a_room_succeeds_once_its_row_is_found_in_the_slot() -> None:
    decode = Decode()
    room = decode.asked(aux=3)
    decode.hear(FIRST, AuxRow(room.room, room.generation, b"row"))
    decode(s.RowWritten(room.generation))
    decode.hear(FIRST, ended(room, KVPoll.SUCCESS))
    assert not room.over
    done = decode(s.RowChecked(room.generation))
    assert done == [a.Ended(room.generation, True)]
    assert room.status is KVPoll.SUCCESS


@pytest.mark.parametrize("answer", [s.RowWritten, s.RowChecked])
def test_what_is_amiss_with_a_row_ends_the_room(answer: type[s.RowWritten | s.RowChecked]) -> None:
    decode = Decode()
    room = decode.asked(aux=3)
    decode.hear(FIRST, AuxRow(room.room, room.generation, b"row"))
    if answer is s.RowChecked:
        decode(s.RowWritten(room.generation))
        decode.hear(FIRST, ended(room, KVPoll.SUCCESS))
    decode(answer(room.generation, NOT_THERE))
    assert room.failure is NOT_THERE
    decode.hear(FIRST, ended(room, KVPoll.FAILED))
    assert room.silent
