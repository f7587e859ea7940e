"""Prefill learns what decode holds already, and announces and sends only the rest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import pytest
from groups import Group, Groups, Model, ended, groups, ranks
from pair import Pair, config, early, finish, paired, pools, soon

from pdcore import (
    FailureCode,
    KVPoll,
    KVReceiver,
    KVSender,
    KVTransferError,
    RoomError,
    RoomId,
    StateBuffer,
    StateComponent,
    TransferModel,
)

STATE = [StateComponent("mamba", 8, (StateBuffer("conv", 96),))]
VERIFIED = attrs.evolve(config(), transfer=attrs.evolve(config().transfer, verify="all"))
TOKENS = 4
"""Tokens of a page."""
_rooms = itertools.count(10)


@pytest.fixture
def room() -> RoomId:
    return RoomId(next(_rooms))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with paired(VERIFIED, source=pools(state=STATE), target=pools(state=STATE)) as both:
        sender, receiver = both.open(1)  # they pair, once for all
        sender.init(0)
        receiver.send_metadata([], None, [[0]])
        sender.send([], [[0]])
        finish(sender, receiver)
        yield both


def failures(*handles: KVSender | KVReceiver) -> list[KVTransferError]:
    """Wait until rooms have failed, return why, and clear them."""
    found = []
    for handle in handles:
        assert handle.wait(soon()) is KVPoll.FAILED
        failure = handle.failure()
        assert failure is not None
        found.append(failure)
    for handle in handles:
        handle.clear()
    return found


def met(sender: KVSender) -> None:
    """Wait until all decode ranks have asked."""
    deadline = soon()
    while sender.poll() is KVPoll.BOOTSTRAPPING:
        assert not deadline.expired
        sender.wait(deadline.within(0.005))


def known(sender: KVSender) -> int | None:
    return sender.decode_prefix_len


def send(sender: KVSender, pages: list[int]) -> None:
    """Send pages in two chunks, the last one with state."""
    half = len(pages) // 2
    if half:
        sender.send(pages[:half])
    sender.send(pages[half:], [[3]])


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize(("held", "start"), [(0, 0), (9, 2), (9, 1), (9, 0), (28, 7), (28, 3)])
def test_what_decode_holds_need_not_be_announced(
    pair: Pair, room: RoomId, held: int, start: int, late: bool
) -> None:
    source, target, whole = list(range(10, 17)), list(range(30, 37)), held // TOKENS
    pair.decode.pools.arrays[0].fill(0)
    sender, receiver = pair.open(room)
    assert known(sender) is None
    aux = pair.prefill.pools.aux
    assert aux is not None
    aux.set(2, room, {"first_token": room})

    def announce() -> None:
        sender.init(7 - start, 2, start_page=start)
        send(sender, source[start:])

    if not late:
        announce()
    receiver.send_metadata(target[whole:], 5, [[6]], decode_prefix_len=held)
    met(sender)
    assert known(sender) == held
    if late:
        announce()
    assert receiver.wait(soon()) is KVPoll.SUCCESS, receiver.failure()
    finish(sender, receiver)
    here, there = pair.prefill.pools, pair.decode.pools
    for ours, theirs in zip(here.arrays, there.arrays, strict=True):
        assert np.array_equal(ours[source[whole:]], theirs[target[whole:]])
    assert not there.arrays[0][target[:whole]].any()
    assert np.array_equal(_state(here)[3], _state(there)[6])
    assert there.aux is not None
    assert there.aux.get(5, room)["first_token"] == room


def _state(memory: Any) -> Any:
    return memory.state[0].regions[0].owner


@pytest.mark.parametrize("late", [True, False])
def test_a_start_beyond_what_decode_holds_fails_the_room_on_both_sides(
    pair: Pair, room: RoomId, late: bool
) -> None:
    sender, receiver = pair.open(room)
    if not late:
        sender.init(2, start_page=3)
    receiver.send_metadata([1, 2, 3], None, [[6]], decode_prefix_len=11)
    if late:
        met(sender)
        sender.init(2, start_page=3)
    for failure in failures(sender, receiver):
        assert failure.code is FailureCode.PLAN
        assert failure.happened.startswith(f"prefill starts room {room} beyond what decode holds")
        assert "start_page=3, decode holds 2 whole pages: 11 tokens of 4 a page" in failure.there_is
        assert failure.to_do == "start at decode_prefix_len of the sender in whole pages, or before"


def test_a_count_that_does_not_fit_the_start_fails_the_room_on_both_sides(pair: Pair, room: RoomId) -> None:
    sender, receiver = pair.open(room)
    receiver.send_metadata([1, 2, 3], None, [[6]], decode_prefix_len=8)
    sender.init(5, start_page=2)
    for failure in failures(sender, receiver):
        assert failure.code is FailureCode.PLAN
        assert "announces 5 pages from page 2 on and aux slot None, decode holds 2 pages" in failure.there_is


@pytest.mark.parametrize("value", [-1, 1.0, None, "2"])
def test_what_is_no_start_is_refused_and_the_room_goes_on(pair: Pair, room: RoomId, value: Any) -> None:
    sender, receiver = pair.open(room)
    with pytest.raises(RoomError, match=f"start_page of room {room} is no count"):
        sender.init(2, start_page=value)
    sender.init(2, start_page=1)
    with pytest.raises(RoomError, match="init"):
        sender.init(2)
    receiver.send_metadata([1, 2], None, [[6]], decode_prefix_len=4)
    send(sender, [8, 9])
    finish(sender, receiver)


def test_more_pages_than_announced_are_refused_whatever_the_start(pair: Pair, room: RoomId) -> None:
    sender, receiver = pair.open(room)
    sender.init(1, start_page=2)
    with pytest.raises(RoomError, match="2 pages, 0 sent before, 1 announced"):
        sender.send([8, 9])
    receiver.send_metadata([1], None, [[6]], decode_prefix_len=8)
    sender.send([8], [[0]])
    finish(sender, receiver)


def test_a_prefix_is_known_as_long_as_the_handle_is(pair: Pair, room: RoomId) -> None:
    sender, receiver = pair.open(room)
    receiver.send_metadata([1], None, [[6]], decode_prefix_len=8)
    met(sender)
    receiver.abort()
    failures(sender, receiver)
    assert sender.decode_prefix_len == 8


def test_inline_sends_the_rest_as_well() -> None:
    model = attrs.evolve(VERIFIED.transfer, model=TransferModel.INLINE)
    with paired(attrs.evolve(VERIFIED, transfer=model)) as pair:
        sender, receiver = pair.open(1)
        receiver.send_metadata([5], decode_prefix_len=8)
        met(sender)
        sender.init(1, start_page=2)
        sender.send([9])
        finish(sender, receiver)
        assert np.array_equal(pair.prefill.pools.arrays[0][9], pair.decode.pools.arrays[0][5])


GROUPS: dict[str, tuple[Model, Group, Group]] = {
    "TP 2 to 1": (Model(), ranks(tp=2), ranks()),
    "TP 2 to 4": (Model(), ranks(tp=2), ranks(tp=4)),
    "CP 2 to 1": (Model(), ranks(cp=2), ranks()),
    "MLA 2 to 1": (Model(kv_heads=0), ranks(tp=2), ranks()),
}


@pytest.mark.parametrize("case", GROUPS)
def test_between_unequal_groups_each_byte_of_the_rest_arrives_in_its_place(case: str) -> None:
    with groups(*GROUPS[case], cfg=VERIFIED) as both:
        for room, held in ((1, 3), (2, 7)):
            source, target = list(range(9, 2, -1)), list(range(20, 27))
            both.wipe()
            senders, receivers = both.open(room)
            for receiver in receivers:
                receiver.send_metadata(target[held:], decode_prefix_len=held * TOKENS + 1)
            for manager, sender in zip(both.prefill, senders, strict=True):
                both.write(manager, source)
                met(sender)
                assert sender.decode_prefix_len == held * TOKENS + 1
                sender.init(7 - held, start_page=held)
                if held == 3:
                    sender.send(source[3:5])
                sender.send(source[max(5, held) :])
            ended([*senders, *receivers])
            for decoder in both.decode:
                both.check(decoder, target[held:], held)


@pytest.fixture(scope="module")
def one_to_two() -> Iterator[Groups]:
    with groups(Model(), ranks(), ranks(tp=2)) as both:
        both.meet()
        yield both


@pytest.mark.parametrize("opened", [True, False])
def test_decode_ranks_that_hold_different_prefixes_fail_the_room_everywhere(
    one_to_two: Groups, room: RoomId, opened: bool
) -> None:
    receivers = [manager.receiver(one_to_two.bootstrap, room) for manager in one_to_two.decode]
    senders = [one_to_two.prefill[0].sender(room)] if opened else []
    for receiver, held in zip(receivers, (2, 1), strict=True):
        receiver.init()
        receiver.send_metadata(range(3 - held), decode_prefix_len=held * TOKENS)
    if not opened:
        deadline = soon()
        while early(one_to_two.prefill[0], room) < 2:
            assert not deadline.expired
            receivers[0].wait(deadline.within(0.005))
        senders = [one_to_two.prefill[0].sender(room)]
    for failure in failures(*senders, *receivers):
        assert failure.code is FailureCode.PLAN
        assert failure.happened.startswith(f"decode ranks disagree about what they hold of room {room}")
        for manager, tokens in zip(one_to_two.decode, (8, 4), strict=True):
            assert manager.incarnation[:8] in failure.there_is
            assert f": {tokens} tokens" in failure.there_is
        assert "the same decode_prefix_len" in failure.to_do
    assert senders[0].decode_prefix_len is None
