"""Schedulers that may not raise: handles that are FAILED from birth, calls that end a room, and ``fail``."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pair import Pair, config, finish, paired, soon

from pdcore import (
    ArgumentError,
    Deadline,
    EngineError,
    FailureCode,
    KVPoll,
    KVReceiver,
    KVSender,
    KVTransferError,
    PDCoreError,
    PlanError,
    RoomError,
    RoomId,
)
from pdcore.errors import AddressError, AuthenticationError, ForkedError, IncompatiblePeerError

CONFIG = config(request=300.0)
_rooms = itertools.count(10)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with paired(CONFIG) as both:
        both.move(1, [0], [0])
        yield both


@pytest.fixture(scope="module")
def closed() -> Iterator[Pair]:
    with paired(CONFIG) as both:
        both.prefill.close()
        both.decode.close()
        yield both


@pytest.fixture
def room() -> RoomId:
    return RoomId(next(_rooms))


Handle = KVSender | KVReceiver


def until_safe(handle: Handle) -> None:
    deadline = soon()
    while not handle.release_safe():
        assert not deadline.expired
        time.sleep(0.005)


def quiet(pair: Pair, room: RoomId) -> tuple[KVSender, KVReceiver]:
    """A room of both sides whose calls may not raise."""
    sender = pair.prefill.sender(room, may_raise=False)
    receiver = pair.decode.receiver(pair.bootstrap.address, room, may_raise=False)
    return sender, receiver


def everything_is_called(handle: Handle) -> None:
    """Call all that a scheduler may call of a handle that was FAILED from birth."""
    assert handle.stillborn
    assert not handle.may_raise
    assert handle.poll() is KVPoll.FAILED
    assert handle.wait(soon()) is KVPoll.FAILED
    assert handle.release_safe()
    assert handle.unsafe_because() == ""
    first = handle.failure()
    assert handle.metric().status is KVPoll.FAILED
    assert handle.metric().pages == handle.metric().total == 0
    if isinstance(handle, KVSender):
        handle.init(-1)
        handle.send([10**9])
        handle.send([1])
        assert handle.decode_prefix_len is None
    else:
        handle.init()
        handle.init(-5)
        handle.send_metadata([10**9])
        handle.send_metadata([1])
        handle.decline("not wanted")
    handle.abort()
    handle.fail(RoomError("something", "else", "happened"))
    handle.clear()
    handle.clear()
    assert handle.failure() is first
    assert handle.poll() is KVPoll.FAILED


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_a_second_room_of_an_id_is_failed_from_birth_and_leaves_the_first_alone(
    pair: Pair, room: RoomId, side: str
) -> None:
    sender, receiver = pair.open(room)
    manager = getattr(pair, side)
    busy = manager.busy()
    twin = quiet(pair, room)[side == "decode"]
    failure = twin.failure()
    assert failure is not None
    assert failure.code is FailureCode.REFUSED
    assert failure.happened == f"room {room} is open already"
    assert twin.room == room
    everything_is_called(twin)
    assert manager.busy() == busy
    assert manager.finished(Deadline.after(0.001)) == []
    assert manager.unsafe().rooms == ()
    with pytest.raises(RoomError, match="is open already"):
        pair.open(room)
    sender.init(1)
    receiver.send_metadata([4])
    sender.send([3])
    finish(sender, receiver)
    assert {
        *pair.prefill.finished(Deadline.after(0.001)),
        *pair.decode.finished(Deadline.after(0.001)),
    } == set()


@pytest.mark.parametrize(("value", "named"), [(-1, -1), (2**63, 2**63), ("5", -1), (None, -1), (1.0, -1)])
def test_what_is_no_room_id_gives_a_handle_that_says_so(pair: Pair, value: Any, named: int) -> None:
    for handle in quiet(pair, value):
        failure = handle.failure()
        assert failure is not None
        assert failure.code is FailureCode.REFUSED
        assert "is no room id" in failure.happened
        assert handle.room == named
        everything_is_called(handle)


def test_a_bad_address_or_deadline_gives_a_handle_that_says_so(pair: Pair, room: RoomId) -> None:
    no_deadline: Any = 30
    refused: dict[str, Handle] = {
        "the address of the bootstrap service": pair.decode.receiver("nowhere", room, may_raise=False),
        "the deadline of a room is no deadline": pair.prefill.sender(room, no_deadline, may_raise=False),
    }
    for said, handle in refused.items():
        failure = handle.failure()
        assert failure is not None
        assert failure.code is FailureCode.REFUSED
        assert said in str(failure)
        everything_is_called(handle)
    assert pair.prefill.busy() == pair.decode.busy() == 0


def test_a_closed_manager_gives_a_handle_that_says_so(closed: Pair, room: RoomId) -> None:
    handles: tuple[Handle, Handle] = quiet(closed, room)
    for side, handle in zip(("prefill", "decode"), handles, strict=True):
        failure = handle.failure()
        assert failure is not None
        assert failure.code is FailureCode.SHUTDOWN
        assert failure.happened == f"the {side} manager was closed"
        everything_is_called(handle)


def test_a_child_gets_a_handle_that_says_so(pair: Pair, room: RoomId) -> None:
    sender, receiver = quiet(pair, room)
    pid = os.fork()
    if not pid:
        wrong = 1
        try:
            twins: tuple[Handle, Handle] = quiet(pair, RoomId(room + 10_000))
            for handle in twins:
                everything_is_called(handle)
            sender.init(1)
            receiver.init()
            told = [sender.failure(), receiver.failure()]
            wrong = sum(why is None or "in a forked child" not in why.happened for why in told)
        finally:
            os._exit(wrong)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert sender.poll() is receiver.poll() is KVPoll.BOOTSTRAPPING
    receiver.init()
    sender.init(1)
    receiver.send_metadata([4])
    sender.send([3])
    finish(sender, receiver)


def several(*calls: Callable[[Any], None]) -> Callable[[Any], None]:
    def in_order(handle: Any) -> None:
        for call in calls:
            call(handle)

    return in_order


WRONG_SENDS: dict[str, Callable[[KVSender], None]] = {
    "send before init": lambda s: s.send([1]),
    "init twice": several(lambda s: s.init(1, 7), lambda s: s.init(1, 7)),
    "a negative count": lambda s: s.init(-1),
    "a slot beyond the pools": lambda s: s.init(1, 10**6),
    "more pages than announced": several(lambda s: s.init(1, 7), lambda s: s.send([1, 2])),
    "a page beyond the pools": several(lambda s: s.init(1, 7), lambda s: s.send([10**6])),
    "another room's slot": several(lambda s: s.init(1, 7), lambda s: s.send([1])),
}
WRONG_ASKS: dict[str, Callable[[KVReceiver], None]] = {
    "metadata before init": lambda r: r.send_metadata([1]),
    "init twice": several(lambda r: r.init(), lambda r: r.init()),
    "a DP rank that is none": lambda r: r.init(-2),
    "a page beyond the pools": several(lambda r: r.init(), lambda r: r.send_metadata([10**6])),
    "a page twice": several(lambda r: r.init(), lambda r: r.send_metadata([1, 1])),
    "a negative prefix": several(lambda r: r.init(), lambda r: r.send_metadata([1], decode_prefix_len=-4)),
    "metadata twice": several(
        lambda r: r.init(), lambda r: r.send_metadata([1]), lambda r: r.send_metadata([1])
    ),
}


@pytest.mark.parametrize(
    "wrong", [*WRONG_SENDS.values(), *WRONG_ASKS.values()], ids=[*WRONG_SENDS, *WRONG_ASKS]
)
def test_a_wrong_call_fails_the_room_on_both_sides_with_what_it_would_raise(
    pair: Pair, room: RoomId, wrong: Callable[[Any], None]
) -> None:
    if wrong in WRONG_SENDS.values():
        loud: Any = pair.prefill.sender(RoomId(room + 1000))
    else:
        loud = pair.decode.receiver(pair.bootstrap.address, RoomId(room + 1000))
    with pytest.raises(PDCoreError) as raised:
        wrong(loud)
    loud.clear()
    until_safe(loud)
    sender, receiver = quiet(pair, room)
    if wrong in WRONG_SENDS.values():
        receiver.init()
        receiver.send_metadata([2], 7)
        wrong(sender)
    else:
        wrong(receiver)
    for handle in (sender, receiver):
        assert handle.wait(soon()) is KVPoll.FAILED
        failure = handle.failure()
        assert failure is not None
        assert failure.happened == raised.value.happened.replace(str(room + 1000), str(room))
        assert failure.code is KVTransferError.of(raised.value).code
        until_safe(handle)
        handle.clear()
    pair.move(room, [5], [6])


def test_what_is_no_error_of_pdcore_is_raised_and_fails_the_room(pair: Pair, room: RoomId) -> None:
    sender, receiver = quiet(pair, room)
    wrong: Any = sender.init
    with pytest.raises(TypeError):
        wrong(1, 2, 3, 4)
    receiver.init()
    assert receiver.wait(soon()) is KVPoll.FAILED
    sender.clear()
    receiver.clear()


# --- fail() ---------------------------------------------------------------------------------

OWN = KVTransferError(FailureCode.INTEGRITY, "the block table is gone", "17 blocks", "send it again")
ERRORS: dict[PDCoreError, FailureCode] = {
    OWN: FailureCode.INTEGRITY,
    PlanError("a", "b", "c"): FailureCode.PLAN,
    RoomError("a", "b", "c"): FailureCode.REFUSED,
    ArgumentError("a", "b", "c"): FailureCode.REFUSED,
    AddressError("a", "b", "c"): FailureCode.REFUSED,
    ForkedError("a", "b", "c"): FailureCode.REFUSED,
    AuthenticationError("a", "b", "c"): FailureCode.UNAUTHENTICATED,
    IncompatiblePeerError("a", []): FailureCode.INCOMPATIBLE,
    EngineError("a", "b", "c"): FailureCode.ENGINE,
    PDCoreError("a", "b", "c"): FailureCode.ENGINE,
}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_as_a_failure_has_the_code_of_its_kind_and_its_words(error: PDCoreError) -> None:
    failure = KVTransferError.of(error)
    assert failure.code is ERRORS[error]
    assert (failure.happened, failure.there_is, failure.to_do) == (
        error.happened,
        error.there_is,
        error.to_do,
    )


@pytest.mark.parametrize(
    ("error", "side", "met"),
    [
        (OWN, "prefill", True),
        (OWN, "decode", True),
        (OWN, "prefill", False),
        (EngineError("the worker died", "rank 1", "look at its log"), "decode", False),
    ],
)
def test_a_room_fails_with_the_callers_own_error_on_both_sides(
    pair: Pair, room: RoomId, error: PDCoreError, side: str, met: bool
) -> None:
    sender, receiver = pair.open(room)
    if met:
        receiver.send_metadata([4])
        deadline = soon()
        while sender.poll() is KVPoll.BOOTSTRAPPING:
            assert not deadline.expired
            sender.wait(deadline.within(0.005))
    handle: Handle = sender if side == "prefill" else receiver
    handle.fail(error)
    handle.fail(RoomError("it has", "ended", "before"))
    for one in (sender, receiver):
        assert one.wait(soon()) is KVPoll.FAILED
        failure = one.failure()
        assert failure is not None
        assert failure.code is ERRORS.get(error, FailureCode.ENGINE)
        assert failure.happened == error.happened
        assert failure.there_is.startswith(error.there_is)
        assert failure.to_do == error.to_do
        one.clear()


def test_failing_with_what_is_no_error_of_pdcore_is_refused(pair: Pair, room: RoomId) -> None:
    wrong: Any = ValueError("mine")
    sender, receiver = pair.open(room)
    with pytest.raises(ArgumentError, match="where an error of pdcore is due"):
        sender.fail(wrong)
    assert sender.poll() is KVPoll.BOOTSTRAPPING
    sender.clear()
    receiver.clear()
    sender, receiver = quiet(pair, RoomId(room + 2000))
    sender.fail(wrong)
    failure = sender.failure()
    assert failure is not None
    assert failure.code is FailureCode.REFUSED
    assert "ValueError" in failure.there_is
    sender.clear()
    receiver.clear()
