"""A deadline says what was awaited and of whom, and who waits with the room's own deadline is told."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from groups import Groups, Model, ended, groups, ranks
from pair import Pair, config, paired, soon, until

from pdcore import (
    BootstrapServer,
    Deadline,
    FailureCode,
    KVPoll,
    KVReceiver,
    KVSender,
    RoomId,
    Topology,
    TransferModel,
)
from pdcore.bootstrap import BootstrapClient, RankRecord
from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.managers.manager import Manager
from pdcore.model import new_incarnation

CONFIG = config(request=300.0)
ROOMS = itertools.count(100)
SHORT = 0.5
"""Seconds of a deadline that shall pass: some ticks of a control thread."""


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with paired(CONFIG) as both:
        both.move(1, [0], [0])
        yield both


@pytest.fixture(scope="module")
def one_to_two() -> Iterator[Groups]:
    with groups(Model(), ranks(), ranks(tp=2), cfg=CONFIG) as both:
        senders, receivers = both.open(1)
        senders[0].init(1)
        senders[0].send([0])
        for receiver in receivers:
            receiver.send_metadata([0])
        ended([*senders, *receivers])
        yield both


@pytest.fixture
def room() -> RoomId:
    return RoomId(next(ROOMS))


def missed(handle: KVSender | KVReceiver, deadline: Deadline) -> str:
    """Wait with the room's own deadline, as README does; return what it awaited."""
    assert handle.wait(deadline) is KVPoll.FAILED
    failure = handle.failure()
    assert failure is not None
    assert failure.code is FailureCode.DEADLINE
    assert failure.happened == f"room {handle.room} missed its deadline"
    assert failure.to_do
    before, _, what = failure.there_is.partition("; awaited: ")
    assert before.startswith("it was ")
    return what


def short() -> Deadline:
    return Deadline.after(SHORT)


def long() -> Deadline:
    return Deadline.after(300)


class Hung(Transfer):
    """A transfer that never ends."""

    def poll(self) -> TransferState:
        return TransferState.PENDING

    def wait(self, deadline: Deadline) -> TransferState:
        time.sleep(deadline.remaining())
        return TransferState.PENDING

    quiescence = Quiescence.DRAINED


# --- decode ---------------------------------------------------------------------------------


def test_decode_says_that_init_was_not_called(pair: Pair, room: RoomId) -> None:
    deadline = short()
    receiver = pair.decode.receiver(pair.bootstrap.address, room, deadline)
    assert missed(receiver, deadline) == "decode's init(), which was not called"


def test_decode_says_that_its_own_metadata_were_missing(pair: Pair, room: RoomId) -> None:
    deadline = short()
    receiver = pair.decode.receiver(pair.bootstrap.address, room, deadline)
    receiver.init()
    assert missed(receiver, deadline) == ("decode's send_metadata(), which was not called; prefill is paired")


@contextmanager
def nobody() -> Iterator[str]:
    """An address that refuses every connection."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_decode_says_which_bootstrap_address_refused_and_how_often(pair: Pair, room: RoomId) -> None:
    deadline = short()
    with nobody() as address:
        receiver = pair.decode.receiver(address, room, deadline)
        receiver.init()
        what = missed(receiver, deadline)
    assert what.startswith(f"the bootstrap service at {address}: ")
    assert "refused" in what.lower()
    assert any(word.isdigit() for word in what.replace(address, "").split())


def test_decode_says_that_a_group_is_not_complete(pair: Pair, room: RoomId) -> None:
    deadline = short()
    with BootstrapServer() as other:
        client = BootstrapClient("test")
        record = RankRecord(new_incarnation(), "127.0.0.1:9", Topology(tp_size=2), 60.0)
        client.register(other.address, record, soon())
        receiver = pair.decode.receiver(other.address, room, deadline)
        receiver.init(0)
        what = missed(receiver, deadline)
        client.close(soon())
    assert other.address in what
    assert what.endswith("whose ranks have not all registered there")


def test_decode_says_who_did_not_answer_the_request_to_pair(pair: Pair, room: RoomId) -> None:
    deadline = short()
    with BootstrapServer() as other, nobody() as dead:
        client = BootstrapClient("test")
        client.register(other.address, RankRecord(new_incarnation(), dead, Topology(), 60.0), soon())
        receiver = pair.decode.receiver(other.address, room, deadline)
        receiver.init()
        what = missed(receiver, deadline)
        client.close(soon())
    assert what == f"prefill rank 0 at {dead} of 1, which did not answer the request to pair"


def test_decode_says_where_the_room_was_not_opened(pair: Pair, room: RoomId) -> None:
    deadline = short()
    receiver = pair.decode.receiver(pair.bootstrap.address, room, deadline)
    receiver.init()
    receiver.send_metadata([1])
    what = missed(receiver, deadline)
    assert what.startswith(f"prefill rank 0 at {pair.prefill.address}, which awaits its scheduler: ")
    assert "the room is not opened there, at DP rank 0 of 1" in what


def test_decode_says_that_prefills_pages_were_missing(pair: Pair, room: RoomId) -> None:
    sender = pair.prefill.sender(room, long())
    sender.init(3)
    sender.send([1])
    deadline = short()
    receiver = pair.decode.receiver(pair.bootstrap.address, room, deadline)
    receiver.init()
    receiver.send_metadata([2, 3, 4])
    # Prefill takes over decode's deadline: whoever sees it first tells the other.
    assert receiver.wait(deadline) is sender.wait(soon()) is KVPoll.FAILED
    for handle in (receiver, sender):
        failure = handle.failure()
        assert failure is not None
        assert "prefill's send(): 1 of 3 pages have come" in failure.there_is


def test_decode_says_that_another_decode_rank_has_not_asked(one_to_two: Groups, room: RoomId) -> None:
    sender = one_to_two.prefill[0].sender(room, long())
    deadline = short()
    receiver = one_to_two.decode[0].receiver(one_to_two.bootstrap, room, deadline)
    receiver.init()
    receiver.send_metadata([1])
    for handle, until_then in ((receiver, deadline), (sender, soon())):
        assert handle.wait(until_then) is KVPoll.FAILED
        failure = handle.failure()
        assert failure is not None
        assert "decode rank 1 of 0, 1 has not asked for it" in failure.there_is


# --- prefill --------------------------------------------------------------------------------


def test_prefill_says_that_nobody_asked(pair: Pair, room: RoomId) -> None:
    deadline = short()
    sender = pair.prefill.sender(room, deadline)
    assert missed(sender, deadline) == (
        "no decode rank has asked for it or said that it has it open; 1 are paired"
    )


def test_prefill_says_who_has_the_room_open_and_did_not_ask(pair: Pair, room: RoomId) -> None:
    deadline = short()
    sender = pair.prefill.sender(room, deadline)
    receiver = pair.decode.receiver(pair.bootstrap.address, room, long())
    receiver.init()
    what = missed(sender, deadline)
    assert what.startswith("no decode rank has asked for it; decode ")
    assert f"({pair.decode.incarnation[:8]}) has it open and has not named its pages" in what
    assert receiver.wait(soon()) is KVPoll.FAILED


def test_prefill_says_that_its_own_init_was_missing(pair: Pair, room: RoomId) -> None:
    deadline = short()
    sender = pair.prefill.sender(room, deadline)
    receiver = pair.decode.receiver(pair.bootstrap.address, room, long())
    receiver.init()
    receiver.send_metadata([1])
    assert missed(sender, deadline).startswith("prefill's init() and send(); decode ")
    assert receiver.wait(soon()) is KVPoll.FAILED


@pytest.mark.parametrize("model", TransferModel)
def test_prefill_says_to_whom_chunks_are_under_way(
    model: TransferModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with paired(config(model, request=300.0)) as both:
        both.move(1, [0], [0])
        receiver = both.decode.receiver(both.bootstrap.address, RoomId(2), long())
        receiver.init()
        receiver.send_metadata([1])
        deadline = short()
        sender = both.prefill.sender(RoomId(2), deadline)
        until(lambda: sender.record.complete)
        monkeypatch.setattr(both.prefill.engine, "do_write", lambda *given: Hung())
        sender.init(1)
        sender.send([1])
        what = missed(sender, deadline)
        assert what.startswith("1 of 1 chunks to decode ")
        assert what.endswith(f"({both.decode.incarnation[:8]}) is under way")
        assert receiver.wait(soon()) is KVPoll.FAILED


# --- whoever waits with the room's own deadline ---------------------------------------------


@contextmanager
def held(manager: Manager) -> Iterator[None]:
    """Hold a control thread: nothing but who waits can end a room."""
    reached, go = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        go.wait(30)

    manager.channel.call(hold)
    assert reached.wait(30)
    try:
        yield
    finally:
        go.set()


@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize("waits", ["its deadline", "a later one", "finished"])
def test_who_waits_is_told_though_the_control_thread_is_held(
    waits: str, side: str, pair: Pair, room: RoomId
) -> None:
    deadline = Deadline.after(0.1)
    manager: Manager = pair.prefill if side == "prefill" else pair.decode
    handle: KVSender | KVReceiver = (
        pair.prefill.sender(room, deadline)
        if side == "prefill"
        else pair.decode.receiver(pair.bootstrap.address, room, deadline)
    )
    manager.finished(Deadline.after(0.001))  # what other tests have ended
    with held(manager):
        if waits == "finished":
            assert manager.finished(soon()) == [room]
        else:
            assert handle.wait(deadline if waits == "its deadline" else soon()) is KVPoll.FAILED
        failure = handle.failure()
        assert failure is not None
        assert failure.code is FailureCode.DEADLINE


def test_who_waits_for_less_than_the_deadline_finds_the_room_open(pair: Pair, room: RoomId) -> None:
    sender = pair.prefill.sender(room, long())
    assert sender.wait(Deadline.after(0.01)) is KVPoll.BOOTSTRAPPING
    assert pair.prefill.finished(Deadline.after(0.01)) == []
    assert sender.failure() is None
    sender.clear()


def test_a_room_that_is_opened_later_may_be_due_first(pair: Pair) -> None:
    late, early = RoomId(next(ROOMS)), RoomId(next(ROOMS))
    pair.decode.finished(Deadline.after(0.001))
    with held(pair.decode):
        first = pair.decode.receiver(pair.bootstrap.address, late, long())
        found: list[list[RoomId]] = []
        waiting = threading.Thread(target=lambda: found.append(pair.decode.finished(soon())))
        waiting.start()
        second = pair.decode.receiver(pair.bootstrap.address, early, Deadline.after(0.1))
        waiting.join(30)
        assert found == [[early]]
        assert first.poll() is KVPoll.BOOTSTRAPPING
    for handle in (first, second):
        handle.clear()
