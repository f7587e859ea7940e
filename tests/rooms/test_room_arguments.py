"""What a scheduler hands in for rooms: integers of any kind; what is none is refused and harms nobody."""

from __future__ import annotations

import array
import datetime
import decimal
import fractions
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pair import Pair, finish, paired, pools, soon

from pdcore import (
    ArgumentError,
    Deadline,
    DPChoice,
    FailureCode,
    KVPoll,
    PDCoreError,
    PlanError,
    RoomError,
    RoomId,
    StateBuffer,
    StateComponent,
)

Integer = Callable[[int], Any]
INTEGERS: list[Integer] = [
    int,
    np.int64,
    np.uint8,
    np.int16,
    np.array,
    torch.tensor,
    lambda n: torch.tensor(n, dtype=torch.int32),
]
NO_INTEGERS: list[Any] = [
    1.0,
    "1",
    b"1",
    None,
    True,
    np.True_,
    np.float32(1),
    np.array([1]),
    np.array(1.0),
    torch.tensor([1]),
    torch.tensor(1.0),
    torch.tensor(True),
    [1],
    math.nan,
    Ellipsis,
    datetime.timedelta(seconds=1),
]
NO_DEADLINES: list[Any] = [
    30,
    30.0,
    0,
    "30",
    True,
    np.float64(3),
    torch.tensor(3),
    datetime.datetime(2030, 1, 1),
    datetime.timedelta(seconds=3),
    Deadline,
    (3,),
]


@pytest.fixture(scope="module")
def both() -> Iterator[Pair]:
    state = [StateComponent("mamba", 8, (StateBuffer("conv", 64),))]
    with paired(source=pools(state=state), target=pools(state=state)) as pair:
        sender, receiver = pair.open(1)  # they pair, once for all
        sender.init(0)
        receiver.send_metadata([], None, [[0]])
        sender.send([], [[0]])
        finish(sender, receiver)
        yield pair


_rooms = itertools.cycle(range(10, 120))


@pytest.fixture
def room() -> int:
    return next(_rooms)


def refusal(action: Callable[[], object], kind: type[PDCoreError]) -> PDCoreError:
    with pytest.raises(kind) as caught:
        action()
    assert caught.value.there_is
    assert caught.value.to_do
    return caught.value


# Integers


@pytest.mark.parametrize("kind", INTEGERS)
def test_a_room_is_the_same_whatever_integers_name_it(both: Pair, room: int, kind: Integer) -> None:
    other = np.int32
    aux = both.prefill.pools.aux
    assert aux is not None
    both.prefill.register_dp_rank(kind(room))
    sender = both.prefill.sender(kind(room), soon())
    receiver = both.decode.receiver(both.bootstrap.address, RoomId(other(room)), soon())
    assert (sender.room, type(sender.room)) == (room, int)
    assert (receiver.room, type(receiver.room)) == (room, int)
    with pytest.raises(RoomError, match=f"room {room} is open already"):
        both.prefill.sender(RoomId(other(room)))
    receiver.init(DPChoice.QUERY)
    sender.init(kind(2), kind(3))
    aux.set(kind(3), kind(room), {"first_token": room})
    receiver.send_metadata(np.array([room % 60, 61], np.uint16), kind(5), [[kind(1)]], kind(0))
    sender.send([kind(1), kind(2)], [[kind(7)]])
    assert receiver.wait(soon()) is KVPoll.SUCCESS, receiver.failure()
    assert both.decode.pools.aux is not None
    assert both.decode.pools.aux.get(kind(5), kind(room))["first_token"] == room
    assert room in [*both.decode.finished(soon())]
    finish(sender, receiver)


@pytest.mark.parametrize("value", [*NO_INTEGERS, -1, 2**63, 2**70], ids=repr)
def test_what_is_no_room_id_opens_nothing(both: Pair, value: Any) -> None:
    before = both.prefill.busy(), both.decode.busy()
    for call in (
        lambda: both.prefill.sender(value),
        lambda: both.decode.receiver(both.bootstrap.address, value),
        lambda: both.prefill.register_dp_rank(RoomId(1), value),
    ):
        error = refusal(call, RoomError)
        assert "is no room id" in error.happened
        assert error.there_is == "rooms are 0 to 2**63 - 1"
    assert (both.prefill.busy(), both.decode.busy()) == before


@pytest.mark.parametrize("value", [*NO_INTEGERS, -1, 2**63, 2**70], ids=repr)
def test_what_is_no_count_is_refused_and_the_room_goes_on(both: Pair, room: int, value: Any) -> None:
    sender, receiver = both.open(room)
    error = refusal(lambda: sender.init(value), RoomError)
    assert error.happened == f"num_pages of room {room} is no count"
    assert error.to_do == "hand in an integer from 0 to 2**63 - 1"
    with pytest.raises(RoomError, match="decode_prefix_len="):
        receiver.send_metadata([1], None, [[1]], value)
    if value is not None:
        with pytest.raises(RoomError, match=r"aux slot .* does not exist"):
            sender.init(1, value)
        with pytest.raises(RoomError, match=r"aux slot .* does not exist"):
            receiver.send_metadata([1], value, [[1]])
    sender.init(1)
    receiver.send_metadata([1], None, [[1]])
    sender.send([1], [[1]])
    finish(sender, receiver)


@pytest.mark.parametrize("value", [*NO_INTEGERS, -1, "query", "by_room"], ids=repr)
def test_what_is_no_dp_rank_is_refused_and_the_room_goes_on(both: Pair, room: int, value: Any) -> None:
    sender, receiver = both.open(1000 + room)  # which calls init
    sender.clear()  # which decode would end a moment later, while another test counts rooms
    receiver.clear()
    receiver = both.decode.receiver(both.bootstrap.address, RoomId(room))
    error = refusal(lambda: receiver.init(value), RoomError)
    assert error.happened == f"prefill_dp_rank of room {room} is no count"
    receiver.init(np.int64(0))
    receiver.clear()


# Deadlines


@pytest.mark.parametrize("value", NO_DEADLINES, ids=repr)
def test_what_is_no_deadline_is_refused_everywhere_and_says_how_to_make_one(
    both: Pair, room: int, value: Any
) -> None:
    sender, receiver = both.open(room)
    before = both.prefill.busy(), both.decode.busy()
    for call in (
        lambda: both.prefill.sender(RoomId(9), value),
        lambda: both.decode.receiver(both.bootstrap.address, RoomId(9), value),
        lambda: sender.wait(value),
        lambda: receiver.wait(value),
        lambda: both.prefill.finished(value),
        lambda: both.decode.finished(value),
    ):
        error = refusal(call, ArgumentError)
        assert error.happened.startswith("the deadline of ")
        assert type(value).__name__ in error.there_is
        assert "hand in Deadline.after(seconds)" in error.to_do
    assert (both.prefill.busy(), both.decode.busy()) == before
    sender.clear()
    receiver.clear()


def test_a_number_of_seconds_is_answered_with_the_call_that_was_meant(both: Pair) -> None:
    error = refusal(lambda: both.prefill.finished(2.5), ArgumentError)  # type: ignore[arg-type]
    assert "such as Deadline.after(2.5): so many seconds from now" in error.to_do


def test_none_is_no_deadline_to_wait_for(both: Pair, room: int) -> None:
    sender, receiver = both.open(room)
    for call in (sender.wait, receiver.wait, both.prefill.finished, both.decode.finished):
        error = refusal(lambda call=call: call(None), ArgumentError)  # type: ignore[misc]
        assert error.there_is == "None, where a Deadline is due"
    sender.clear()
    receiver.clear()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "3", None, True, np.array([1.0, 2.0]), 1j])
def test_a_deadline_is_made_of_a_finite_number_only(value: Any) -> None:
    refusal(lambda: Deadline(value), ArgumentError)
    assert isinstance(refusal(lambda: Deadline.after(value), ArgumentError), ValueError)


@pytest.mark.parametrize(
    "seconds",
    [3, np.float32(3), np.int8(3), torch.tensor(3.0), decimal.Decimal(3), fractions.Fraction(3)],
)
def test_numbers_of_any_kind_make_a_deadline(seconds: Any) -> None:
    deadline = Deadline.after(seconds, lambda: 100.0)
    assert (deadline.at, type(deadline.at)) == (103.0, float)
    assert type(Deadline(seconds).at) is float


@pytest.mark.parametrize("seconds", [1e9 + 1, 1e300, 0, -1])
def test_a_deadline_lies_ahead_and_the_system_can_wait_for_it(seconds: float) -> None:
    refusal(lambda: Deadline.after(seconds), ArgumentError)
    assert Deadline(1e300).remaining() == 1e9


# Index lists


@pytest.mark.parametrize(
    "pages",
    [
        torch.tensor([3, 4]),
        torch.tensor([3, 4], dtype=torch.int16),
        np.array([3, 4], np.uint64),
        (3, 4),
        range(3, 5),
        array.array("q", [3, 4]),
        [np.int8(3), torch.tensor(4)],
    ],
    ids=repr,
)
def test_index_lists_of_any_integer_kind_are_welcome(both: Pair, room: int, pages: Any) -> None:
    sender, receiver = both.open(room)
    sender.init(2)
    receiver.send_metadata(pages, None, [pages[:1]])
    sender.send(pages, [pages[:1]])
    finish(sender, receiver)


@pytest.mark.parametrize(
    "pages",
    [
        [1.0, 2.0],
        np.array([1.5]),
        torch.tensor([1.0]),
        [[1, 2]],
        [[1], [2, 3]],
        np.zeros((2, 2), np.int64),
        [True, False],
        torch.tensor([True]),
        5,
        torch.tensor(5),
        None,
        "12",
        b"12",
        ["1", "2"],
        [None],
        {1, 2},
        {1: 2},
        [2**63],
        [2**70],
        np.array([2**64 - 1], np.uint64),
        [-1],
        [2**62],
        pytest.param(iter([1, 2]), id="an iterator"),
        torch.empty(2, dtype=torch.int64, device="meta"),
    ],
    ids=repr,
)
def test_what_is_no_list_of_pages_is_refused_and_the_room_goes_on(both: Pair, room: int, pages: Any) -> None:
    sender, receiver = both.open(room)
    sender.init(2)
    refusal(lambda: receiver.send_metadata(pages, None, [[1]]), PlanError)
    refusal(lambda: sender.send(pages, [[1]]), PlanError)
    refusal(lambda: receiver.send_metadata([1, 2], None, [pages]), PlanError)
    receiver.send_metadata([1, 2], None, [[1]])
    sender.send([1, 2], [[1]])
    finish(sender, receiver)


@pytest.mark.parametrize(
    "lists", [5, [5], [1, 2], [[1], [2]], [], None, np.zeros((2, 1), np.int64)], ids=repr
)
def test_state_lists_that_do_not_match_are_refused(both: Pair, room: int, lists: Any) -> None:
    sender, receiver = both.open(room)
    sender.init(1)
    refusal(lambda: receiver.send_metadata([1], None, lists), PlanError)
    refusal(lambda: sender.send([1], lists), PlanError)
    sender.clear()
    receiver.clear()


# One bad record


class BadClock:
    """Tells the time until it breaks."""

    broken = False

    def __call__(self) -> float:
        if self.broken:
            raise RuntimeError("no time")
        return 100.0


def test_a_deadline_that_cannot_tell_fails_its_own_room_and_no_other() -> None:
    with paired() as pair:
        pair.move(1, [1], [1])
        clock = BadClock()
        odd = [*pair.open(2, Deadline.after(5, clock))]
        good = [*pair.open(3, Deadline.after(0.3))]
        clock.broken = True
        for handle in (*odd, *good):
            assert handle.wait(soon()) is KVPoll.FAILED
            failure = handle.failure()
            assert failure is not None
            assert failure.code is FailureCode.DEADLINE
        pair.move(4, [1], [1])


def test_what_raises_on_the_control_thread_keeps_no_room_from_its_deadline(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def raises(*_: object) -> None:
        raise RuntimeError("a third party")

    with paired() as pair:
        pair.move(1, [1], [1])
        odd = [*pair.open(2, Deadline.after(0.3))]
        for handle in odd:
            monkeypatch.setattr(handle, "give_up", raises)
        good = [*pair.open(3, Deadline.after(0.3))]
        with monkeypatch.context() as patch:
            patch.setattr(pair.decode.engine, "expect", raises)
            patch.setattr(pair.prefill.quarantine, "sweep", raises)
            patch.setattr(pair.prefill._registration._client, "renew", raises)
            for handle in (*odd, *good):
                assert handle.wait(soon()) is KVPoll.FAILED
                failure = handle.failure()
                assert failure is not None
                assert failure.code is FailureCode.DEADLINE
        assert pair.prefill.channel.alive
        assert pair.decode.channel.alive
        pair.move(4, [3], [4])
    assert "which goes on" in caplog.text
    assert "a third party" in caplog.text
    monkeypatch.undo()
