"""What went wrong only when two things happened at once, in every order in which they can.

A machine handles one stimulus after the other: what threads did at once is an order of stimuli.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from two import GIVEN_UP, GROUP, LONG, Handle, One, Two, one

from pdcore.errors import FailureCode, KVTransferError, RoomError
from pdcore.model import KVPoll, Role, RoomId
from pdcore.protocol import actions as a
from pdcore.protocol import stimuli as s
from pdcore.protocol.room import Room
from pdcore.wire import Abort, Failure, Inquiry, Message, Released, RequestMetadata, RoomStatus

ROOM = RoomId(7)
SOON = 2.0
GONE = KVTransferError(FailureCode.PEER_LOST, "peer is gone", "reset", "-")
Step = Callable[[], None]


def paired(two: Two) -> Two:
    """Both have met in a room before."""
    both = two.offered(RoomId(1)), two.asked(RoomId(1))
    two.settle()
    for handle in both:
        assert handle.succeeded
        handle.clear()
    return two


@pytest.fixture
def two() -> Two:
    return paired(Two())


def orders(first: int, second: int) -> list[tuple[bool, ...]]:
    """All orders of so many steps of one side and so many of the other; True: it is one of the first."""
    every = range(first + second)
    return [tuple(n in chosen for n in every) for chosen in itertools.combinations(every, first)]


def in_order(order: Sequence[bool], first: Sequence[Step], second: Sequence[Step]) -> Iterator[None]:
    """Do steps of two sides in some order, and let the caller look after each."""
    ours, theirs = iter(first), iter(second)
    for mine in order:
        next(ours if mine else theirs)()
        yield


class Prefill:
    """The steps of prefill's side, as its threads would take them."""

    def __init__(self, two: Two, pages: int = 1) -> None:
        self.two, self.pages, self.room = two, pages, None
        self.generation = two.number()
        self.shipped: list[a.Ship] = []
        two.holding.add(a.Ship)

    room: Room | None

    def open(self) -> None:
        self.two.feed(self.two.prefill, s.OpenSend(ROOM, self.generation, self.two.now + LONG))
        self.room = self.two.prefill.machine.sending.rooms[self.generation]

    def announce(self) -> None:
        self.two.feed(self.two.prefill, s.AnnouncePages(self.generation, self.pages, None, 0))

    def supply(self) -> None:
        self.two.feed(self.two.prefill, s.Supply(self.generation, np.arange(self.pages)))

    def arrive(self) -> None:
        """What was shipped arrives."""
        held, self.two.prefill.held = self.two.prefill.held, []
        for do in held:
            assert isinstance(do, a.Ship)
            self.shipped.append(do)
            self.two.arrive(self.two.prefill, do)

    @property
    def steps(self) -> list[Step]:
        return [self.open, self.announce, self.supply, self.arrive]


def delivers(two: Two, who: One, message: Message) -> Step:
    return lambda: two.feed(two.prefill, s.Heard(who.route, message))


def take_posted(who: One, kind: type[Message]) -> Message:
    """Take the only message that a side has posted, which is of such a kind."""
    ((_, message),) = who.posted
    assert isinstance(message, kind)
    who.posted.clear()
    return message


def is_safe(handle: Handle) -> bool:
    """Whether a room's pages may be used again."""
    return handle.room.silent


# --- bytes and pages ------------------------------------------------------------------------


@pytest.mark.parametrize("order", orders(4, 2))
def test_an_abort_frees_no_page_that_prefill_may_write_to(order: tuple[bool, ...], two: Two) -> None:
    prefill = Prefill(two)
    receiver = two.asked(ROOM)
    request = take_posted(two.decode, RequestMetadata)
    receiver.abort()
    abort = take_posted(two.decode, Abort)
    assert not is_safe(receiver)
    words = [delivers(two, two.decode, word) for word in (request, abort)]
    for _ in in_order(order, prefill.steps, words):
        if two.prefill.held:  # a write is under way
            assert not is_safe(receiver)
        writes = len(two.prefill.held) + len(prefill.shipped)
        while two.prefill.posted:
            _, message = two.prefill.posted.popleft()
            two.feed(two.decode, s.Heard(two.decode.to(two.prefill), message))
        if is_safe(receiver):
            assert not two.prefill.held
            assert writes == len(prefill.shipped)
    two.wait(SOON)
    prefill.arrive()
    two.settle()
    assert is_safe(receiver)
    assert prefill.room is not None
    assert prefill.room.over
    assert prefill.room.silent


@pytest.mark.parametrize("order", orders(4, 2))
def test_a_question_ends_nothing_whenever_it_comes(order: tuple[bool, ...], two: Two) -> None:
    prefill = Prefill(two)
    receiver = two.asked(ROOM)
    request = take_posted(two.decode, RequestMetadata)
    words = [delivers(two, two.decode, w) for w in (request, Inquiry(ROOM, receiver.generation))]
    for _ in in_order(order, prefill.steps, words):
        two.settle()
    prefill.arrive()
    two.settle()
    assert receiver.succeeded, receiver.room.failure
    assert prefill.room is not None
    assert prefill.room.status is KVPoll.SUCCESS


@pytest.mark.parametrize("order", orders(3, 1))
def test_no_chunk_goes_out_before_both_sides_agree(order: tuple[bool, ...], two: Two) -> None:
    prefill = Prefill(two, pages=2)
    receiver = two.asked(ROOM)  # for one page
    request = take_posted(two.decode, RequestMetadata)
    for _ in in_order(order, prefill.steps[:3], [delivers(two, two.decode, request)]):
        assert not two.prefill.held
    two.settle()
    assert prefill.room is not None
    for room in (receiver.room, prefill.room):
        assert room.failure is not None
        assert room.failure.code is FailureCode.PLAN
    assert not two.prefill.held


@pytest.mark.parametrize("names_pages_first", [True, False])
def test_an_abort_never_overtakes_its_request(names_pages_first: bool) -> None:
    two = Two()
    two.holding.add(a.Admit)
    receiver = two.opened(ROOM)
    two.settle()
    (admit,) = two.decode.held
    assert isinstance(admit, a.Admit)
    connected = s.PeerConnected(admit.route, admit.identity)
    if names_pages_first:
        two.place(receiver)
        assert not two.decode.posted
        two.feed(two.decode, connected)
    else:
        two.feed(two.decode, connected)
        two.place(receiver)
    receiver.abort()
    assert [type(message) for _, message in two.decode.posted] == [RequestMetadata, Abort]


def test_a_request_of_a_lost_pairing_does_not_go_out_over_the_next_one(two: Two) -> None:
    two.holding |= {a.Post, a.Lost, a.Dial, a.Asked}
    receiver = two.asked(ROOM)
    two.feed(two.decode, s.PeerGone(two.decode.to(two.prefill), "as if heartbeats were missing"))
    assert receiver.failed
    two.opened(RoomId(8))
    kinds = [type(do) for do in two.decode.held]
    lost = kinds.index(a.Lost)
    assert kinds[:lost] == [a.Asked, a.Post]
    assert a.Dial in kinds[lost:]
    later = [do.message for do in two.decode.held[lost:] if isinstance(do, a.Post)]
    assert not any(isinstance(message, RequestMetadata | Abort) for message in later)


def test_who_is_lost_while_it_is_admitted_is_revoked_and_its_rooms_fail() -> None:
    two = Two()
    two.holding |= {a.Admit, a.Revoke}
    receiver = two.asked(ROOM)
    two.settle()
    (admit,) = two.decode.held
    assert isinstance(admit, a.Admit)
    two.feed(two.decode, s.PeerGone(admit.route, "it is gone"))
    two.feed(two.decode, s.PeerConnected(admit.route, admit.identity))
    assert [type(do) for do in two.decode.held] == [a.Admit, a.Revoke]
    assert receiver.failed
    assert receiver.room.silent  # nobody was asked
    assert not any(isinstance(message, RequestMetadata) for _, message in two.decode.posted)


# --- rooms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_a_room_is_opened_before_its_side_closes_and_ends_or_not_at_all(side: str, two: Two) -> None:
    who = two.prefill if side == "prefill" else two.decode
    handle = two.offered(ROOM) if side == "prefill" else two.opened(ROOM)
    ended = KVTransferError(FailureCode.SHUTDOWN, "it closed", "close() was called", "-")
    two.feed(who, s.Close(ended))
    assert handle.room.failure is ended
    assert handle.room.silent
    with pytest.raises(RoomError) as caught:
        two.offered(RoomId(8)) if side == "prefill" else two.opened(RoomId(8))
    assert caught.value.happened == "room 8 cannot be opened"
    assert caught.value.there_is == "close() was called"


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_a_room_that_is_not_cleared_cannot_be_opened_again(side: str, ended: bool, two: Two) -> None:
    opens = two.offered if side == "prefill" else two.opened
    first = opens(ROOM)
    if ended:
        first.abort()
    with pytest.raises(RoomError) as caught:
        opens(ROOM)
    assert caught.value.happened == "room 7 is open already"
    assert caught.value.there_is == f"generation {first.generation}, {first.room.status.name}"
    assert caught.value.to_do == "clear() the earlier request first, or use another room"


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_what_comes_of_a_cleared_room_touches_no_later_one_of_its_id(side: str, two: Two) -> None:
    opens = two.offered if side == "prefill" else two.opened
    first = opens(ROOM)
    first.clear()
    second = opens(ROOM)
    first.clear()
    first.abort()
    assert first.failed
    assert not second.room.over
    with pytest.raises(RoomError, match="open already"):
        opens(ROOM)
    two.wait(SOON)
    assert not second.room.over


def group() -> Two:
    """One prefill rank, and a decode group of two: its ranks are ``decode`` and ``other``."""
    two = Two()
    two.prefill = one("prefill", Role.PREFILL, 1, (1, 0), 0, 1)
    two.decode = one("decode", Role.DECODE, 2, (2, 0))
    two.other = one("other", Role.DECODE, 3, (2, 1))
    sender = two.offered(RoomId(1))
    receivers = two.asked(RoomId(1)), two.asked(RoomId(1), two.other)
    two.settle()
    for handle in (sender, *receivers):
        assert handle.succeeded, handle.room.failure
        handle.clear()
    return two


@pytest.mark.parametrize("lost_first", [True, False])
def test_every_early_request_is_answered_of_a_room_that_ends_since_a_rank_was_lost(lost_first: bool) -> None:
    two = group()
    receivers = two.asked(ROOM), two.asked(ROOM, two.other)
    two.settle()
    two.holding.add(a.Ship)
    sender = None if lost_first else two.offered(ROOM)
    two.feed(two.prefill, s.PeerGone(two.decode.route, "it is gone"))
    sender = sender or two.offered(ROOM)
    two.wait(SOON)
    for ship in two.prefill.held:
        assert isinstance(ship, a.Ship)
        assert not receivers[1].room.silent
        two.arrive(two.prefill, ship)
    two.settle()
    failure = receivers[1].room.failure
    assert failure is not None
    assert failure.code is FailureCode.PEER_LOST
    assert "it is gone" in failure.there_is
    assert receivers[1].room.silent
    assert sender.failed
    assert sender.room.silent


def test_every_early_request_is_answered_of_a_room_that_ends_as_it_is_opened() -> None:
    two = group()
    receivers = two.asked(ROOM), two.opened(ROOM, two.other)
    other = RequestMetadata(ROOM, receivers[1].generation, np.array([5]), None, (), 3, 0.0)
    receivers[1].feed(s.Place(receivers[1].generation, other))  # they disagree about the prefix
    two.settle()
    generation = two.number()
    two.feed(two.prefill, s.OpenSend(ROOM, generation, two.now + LONG))
    assert two.prefill.machine.sending.rooms[generation].status is KVPoll.FAILED
    two.settle()
    for receiver in receivers:
        assert receiver.room.failure is not None
        assert receiver.room.failure.code is FailureCode.PLAN
        assert receiver.room.silent


def again(two: Two) -> None:
    """Have prefill lose its decode rank, which pairs again: the same process."""
    two.feed(two.prefill, s.PeerGone(two.decode.route, "it is gone", two.decode.identity))
    two.feed(two.decode, s.PeerGone(two.decode.to(two.prefill), "it is gone", two.prefill.identity))
    paired(two)


@pytest.mark.parametrize("told", ["while it is lost", "once it is paired again"])
def test_what_is_said_of_an_earlier_pairing_does_not_hurt_the_next(told: str, two: Two) -> None:
    two.holding.add(a.Ship)
    sender, receiver = two.offered(ROOM), two.asked(ROOM)
    two.settle()
    (ship,) = two.prefill.held
    assert isinstance(ship, a.Ship)
    two.holding.clear()
    late = s.DeliveryEnded(ship.delivery, GONE), s.DeliveryDrained(ship.delivery)
    two.holding.add(a.Suspect)
    two.feed(two.prefill, s.PeerGone(two.decode.route, "it is gone"))
    assert sender.failed
    if told == "while it is lost":
        for stimulus in late:
            two.feed(two.prefill, stimulus)
    again(two)
    next_one = two.offered(RoomId(8))
    for stimulus in late:
        two.feed(two.prefill, stimulus)
    assert two.prefill.held == [ship]
    second = two.asked(RoomId(8))
    two.settle()
    assert next_one.succeeded
    assert second.succeeded
    assert receiver.failed


def test_the_first_word_that_a_peer_is_gone_is_taken(two: Two) -> None:
    two.holding |= {a.Ship, a.Suspect}
    sender = two.offered(ROOM)
    two.asked(ROOM)
    two.settle()
    (ship,) = two.prefill.held
    assert isinstance(ship, a.Ship)
    two.feed(two.prefill, s.DeliveryEnded(ship.delivery, GONE))
    assert sender.room.failure is GONE
    assert two.prefill.held[1:] == [a.Suspect(two.decode.route, two.decode.identity, GONE)]


def test_what_is_said_of_another_process_at_a_route_is_not_taken(two: Two) -> None:
    receiver = two.opened(ROOM)
    for stimulus in (
        s.PeerGone(two.decode.to(two.prefill), "it is gone", two.other.identity),
        s.PeerFailed(two.decode.to(two.prefill), two.other.identity, GONE),
        s.WriterSilent(two.other.identity),
    ):
        two.feed(two.decode, stimulus)
    assert not receiver.room.over


@pytest.mark.parametrize("lost_first", [True, False])
def test_a_room_that_chooses_a_group_which_is_lost_fails_or_finds_it_anew(lost_first: bool, two: Two) -> None:
    generation = two.number()
    two.feed(two.decode, s.OpenReceive(ROOM, generation, two.now + LONG, GROUP))
    room = two.decode.machine.receiving.rooms[generation]
    steps: list[s.Stimulus] = [
        s.PeerGone(two.decode.to(two.prefill), "it is gone"),
        s.Choose(generation, GROUP),
    ]
    for stimulus in steps if lost_first else reversed(steps):
        two.feed(two.decode, stimulus)
    if lost_first:
        receiver = Handle(two, two.decode, generation, room)
        two.place(receiver)
        two.settle()
        sender = two.offered(ROOM)
        two.settle()
        assert receiver.succeeded, room.failure
        assert sender.succeeded
    else:
        assert room.failure is not None
        assert room.failure.code is FailureCode.PEER_LOST


def test_a_room_fails_whose_peer_was_lost_after_it_asked_and_before_prefill_opened_it(two: Two) -> None:
    two.asked(ROOM)
    two.settle()
    two.feed(two.prefill, s.PeerGone(two.decode.route, "3 heartbeats are missing"))
    sender = two.offered(ROOM)
    two.wait(SOON)
    failure = sender.room.failure
    assert failure is not None
    assert failure.code is FailureCode.PEER_LOST
    assert failure.there_is == "3 heartbeats are missing, before prefill and decode had met in the room"


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_room_ends_once_whatever_ends_it_at_once(order: tuple[int, ...], two: Two) -> None:
    two.holding |= {a.Ship, a.Ended, a.Silent}
    sender = two.offered(ROOM)
    receiver = two.asked(ROOM)
    two.settle()
    (ship,) = two.prefill.held
    assert isinstance(ship, a.Ship)
    steps: list[Step] = [
        sender.abort,
        lambda: two.feed(
            two.prefill,
            s.Heard(two.decode.route, Abort(ROOM, receiver.generation, Failure.of(GIVEN_UP))),
        ),
        lambda: two.feed(two.prefill, s.DeliveryEnded(ship.delivery, GONE)),
    ]
    for number in order:
        steps[number]()
    assert sender.failed
    assert [do for do in two.prefill.held if isinstance(do, a.Ended)] == [a.Ended(sender.generation)]
    told = [m for _, m in two.prefill.posted if isinstance(m, RoomStatus)]
    assert [m.drained for m in told] == [False]
    two.feed(two.prefill, s.DeliveryDrained(ship.delivery))
    assert [m for _, m in two.prefill.posted if isinstance(m, Released)]
    assert two.prefill.held[-1] == a.Silent(sender.generation)


@pytest.mark.parametrize("asked", [True, False])
def test_what_one_worker_gave_up_before_a_room_opened_ends_it_unless_another_asks(
    asked: bool, two: Two
) -> None:
    two.opened(RoomId(7), two.other).clear()
    sending = two.offered(RoomId(7))
    two.settle()
    assert not sending.failed
    receiving = two.asked(RoomId(7)) if asked else None
    two.wait(1.0)
    if receiving is not None:
        assert sending.succeeded
        assert receiving.succeeded
    else:
        assert sending.room.failure is not None
        assert sending.room.failure.happened == GIVEN_UP.happened
