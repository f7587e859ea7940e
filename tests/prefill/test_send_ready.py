"""``send(ready=...)``: pages are read only once what fills them says so, and nobody else waits for that."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs
import numpy as np
import pytest
from groups import Model, ended, groups, ranks
from pair import Pair, config, finish, paired, pools, same_pages, soon

from pdcore import Deadline, FailureCode, KVPoll, PlanError, RoomError, RoomId, TransferModel
from pdcore.prefill.readiness import SourceReadiness
from pdcore.prefill.ready_waiter import Waiter


@attrs.define
class Recorded:
    """What a torch.cuda.Event can do, as far as it is used."""

    done: threading.Event = attrs.field(factory=threading.Event)

    def query(self) -> bool:
        return self.done.is_set()

    def synchronize(self) -> None:
        raise AssertionError("it is asked, so that no thread waits in it")


@attrs.define
class Source:
    """Something that fills pages, and says when it has."""

    done: threading.Event
    ready: object


def event() -> Source:
    done = threading.Event()
    return Source(done, done)


def recorded() -> Source:
    on_device = Recorded()
    return Source(on_device.done, on_device)


def blocking() -> Source:
    done = threading.Event()
    return Source(done, lambda: done.wait(60))


KINDS = [event, recorded, blocking]
Kind = Callable[[], Source]


@contextmanager
def released(*sources: Source) -> Iterator[None]:
    """Whatever happens, let nobody wait for ever."""
    try:
        yield
    finally:
        for source in sources:
            source.done.set()


@attrs.define
class Later:
    """Ready when it is asked for the fourth time."""

    times: int = 0

    def query(self) -> bool:
        self.times += 1
        return self.times > 3

    def wait(self) -> None:
        """Return at once."""


@pytest.fixture(scope="module", params=list(TransferModel))
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Two sides that have paired, and whose threads that wait have started."""
    with paired(config(request.param)) as both:
        both.move(2**40, [0], [0])
        for number, ready in enumerate((Later(), Later().wait)):
            sender, receiver = both.open(2**40 + number)
            sender.init(1)
            receiver.send_metadata([0])
            sender.send([0], ready=ready)
            finish(sender, receiver)
        yield both


workers = pytest.mark.parametrize("pair", [TransferModel.WORKERS], indirect=True)


def write(pair: Pair, page: int, value: int) -> None:
    for array in pair.prefill.pools.arrays:
        array[page] = value


@pytest.mark.parametrize("first", ["decode", "prefill"])
@pytest.mark.parametrize("kind", KINDS)
def test_pages_and_aux_are_read_once_they_are_ready(pair: Pair, kind: Kind, first: str) -> None:
    sender, receiver = pair.open(2)
    sender.init(2, 3)
    if first == "decode":
        receiver.send_metadata([4, 5], 7)
    source = kind()
    with released(source):
        sender.send([10, 11], ready=source.ready)
        if first == "prefill":
            receiver.send_metadata([4, 5], 7)
        pair.move(3, [20], [21])  # others go on
        assert not sender.poll().terminal
        assert sender.metric().chunks == 0
        write(pair, 10, 77)
        write(pair, 11, 78)
        assert pair.prefill.pools.aux is not None
        pair.prefill.pools.aux.set(3, RoomId(2), {"first_token": 42})
    finish(sender, receiver)
    assert [int(array[4, 0]) for array in pair.decode.pools.arrays] == [77] * 8
    assert same_pages(pair.prefill.pools, [10, 11], pair.decode.pools, [4, 5])
    assert pair.decode.pools.aux is not None
    assert pair.decode.pools.aux.get(7, RoomId(2))["first_token"] == 42


def test_what_is_ready_already_goes_out_at_once(pair: Pair) -> None:
    for room, kind in enumerate(KINDS):
        sender, receiver = pair.open(room)
        sender.init(1)
        receiver.send_metadata([4])
        source = kind()
        source.done.set()
        sender.send([10], ready=source.ready)
        finish(sender, receiver)


@workers
@pytest.mark.parametrize("kind", [event, recorded])
def test_the_chunks_of_a_room_keep_their_order(pair: Pair, kind: Kind) -> None:
    sender, receiver = pair.open(2)
    sender.init(4)
    receiver.send_metadata([4, 5, 6, 7])
    first, third = kind(), kind()
    with released(first, third):
        sender.send([10], ready=first.ready)
        sender.send([11])
        sender.send([12], ready=third.ready)
        sender.send([13])
        third.done.set()
        pair.move(3, [20], [21])
        assert sender.metric().chunks == 0  # the first one is not ready
    finish(sender, receiver)
    assert same_pages(pair.prefill.pools, [10, 11, 12, 13], pair.decode.pools, [4, 5, 6, 7])


@pytest.mark.parametrize("kind", KINDS)
def test_rooms_that_are_never_ready_delay_no_other(kind: Kind) -> None:
    with paired() as pair:  # all on one lane
        sources = [kind() for _ in range(12)]
        with released(*sources):
            stuck = []
            for room, source in enumerate(sources):
                sender, receiver = pair.open(room)
                sender.init(1)
                receiver.send_metadata([room])
                sender.send([room], ready=source.ready)
                stuck.append((sender, receiver))
            late = kind()
            sender, receiver = pair.open(50)
            sender.init(1)
            receiver.send_metadata([40])
            sender.send([40], ready=late.ready)
            late.done.set()
            finish(sender, receiver)
            pair.move(51, [41], [41])
            assert not any(sender.poll().terminal for sender, _ in stuck)
        for sender, receiver in stuck:
            finish(sender, receiver)


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        *itertools.product(["prefill aborts", "decode aborts"], KINDS),
        ("deadline", recorded),
    ],
)
def test_a_room_that_ends_while_it_waits_is_safe_at_once(pair: Pair, end: str, kind: Kind) -> None:
    sender, receiver = pair.open(2, Deadline.after(0.2) if end == "deadline" else None)
    sender.init(1)
    receiver.send_metadata([4])
    before = [array.copy() for array in pair.decode.pools.arrays]
    source = kind()
    with released(source):
        sender.send([10], ready=source.ready)
        if end == "prefill aborts":
            sender.abort()
        elif end == "decode aborts":
            receiver.abort()
        assert sender.wait(soon()) is KVPoll.FAILED
        assert sender.release_safe()
        assert receiver.wait(soon()) is KVPoll.FAILED
        while not receiver.release_safe():
            pair.decode.finished(Deadline.after(0.1))
        sender.clear()
        receiver.clear()
    pair.move(2, [11], [5])  # the same id, while the old one becomes ready
    assert all(np.array_equal(a[4], b[4]) for a, b in zip(before, pair.decode.pools.arrays, strict=True))


@workers
def test_a_room_that_misses_its_deadline_says_what_it_waited_for(pair: Pair) -> None:
    sender, receiver = pair.open(2, Deadline.after(0.2))
    sender.init(3)
    receiver.send_metadata([4, 5, 6])
    sender.send([10])
    sender.send([11, 12], ready=threading.Event())
    assert sender.wait(soon()) is KVPoll.FAILED
    failure = sender.failure()
    assert failure is not None
    assert failure.code is FailureCode.DEADLINE
    assert (
        "awaited: the ready of prefill's send() of 2 pages, from page 1 of the request on" in failure.there_is
    )
    assert failure.to_do.startswith("look why what fills them is slow, or whether its event")
    sender.clear()
    receiver.clear()


class Broken:
    """Events and callables of which one can hear nothing but an error; at the first question, or later."""

    def __init__(self, error: Exception, answers: int) -> None:
        self.error, self.answers = error, answers

    def query(self) -> bool:
        self.answers -= 1
        if self.answers < 0:
            raise self.error
        return False

    def __call__(self) -> None:
        raise self.error


@pytest.mark.parametrize("as_callable", [False, True])
@pytest.mark.parametrize("answers", [0, 3])
@workers
def test_a_ready_that_raises_fails_its_room_with_that_reason(
    pair: Pair, answers: int, *, as_callable: bool
) -> None:
    own = PlanError("the pages were not filled", "a NaN", "look at the model")
    for error, code, happened, there_is in (
        (ValueError("the kernel failed"), FailureCode.ENGINE, "the ready of a send() of room 2 raised",
         "ValueError('the kernel failed')"),
        (own, FailureCode.PLAN, "the pages were not filled", "a NaN"),
    ):  # fmt: skip
        sender, receiver = pair.open(2)
        sender.init(1)
        receiver.send_metadata([4])
        broken = Broken(error, answers)
        sender.send([10], ready=broken.__call__ if as_callable else broken)
        for side in (sender, receiver):
            assert side.wait(soon()) is KVPoll.FAILED
            failure = side.failure()
            assert failure is not None
            assert (failure.code, failure.happened, failure.there_is) == (code, happened, there_is)
        assert sender.release_safe()
        sender.clear()
        receiver.clear()
        pair.settle()


@pytest.mark.parametrize("kind", KINDS)
@workers
def test_an_aux_slot_of_another_room_fails_the_room_once_it_is_ready(pair: Pair, kind: Kind) -> None:
    sender, receiver = pair.open(70)
    sender.init(1, 3)
    receiver.send_metadata([4], 7)
    source = kind()
    with released(source):
        sender.send([10], ready=source.ready)
    for side in (sender, receiver):
        assert side.wait(soon()) is KVPoll.FAILED
        failure = side.failure()
        assert failure is not None
        assert failure.code is FailureCode.AUX
        assert failure.happened == "aux slot 3 does not hold the data of room 70"
    assert sender.release_safe()
    sender.clear()
    receiver.clear()


@workers
def test_what_can_be_neither_asked_nor_called_is_refused_and_nothing_is_lost(pair: Pair) -> None:
    sender, receiver = pair.open(2)
    sender.init(1)
    receiver.send_metadata([4])
    with pytest.raises(RoomError) as caught:
        sender.send([10], ready=7)
    assert caught.value.happened == "the ready of a send() of room 2 can be neither asked nor called"
    assert caught.value.there_is == "int 7"
    assert "hand in a threading.Event, a torch.cuda.Event, or a callable" in caught.value.to_do
    sender.send([10])
    finish(sender, receiver)


@pytest.mark.parametrize(("here", "there"), [(1, 2), (2, 1)])
def test_each_rank_of_unequal_groups_waits_for_its_own_pages(here: int, there: int) -> None:
    with groups(Model(kv_heads=2), ranks(tp=here), ranks(tp=there)) as both:
        both.meet()
        senders, receivers = both.open(2)
        both.wipe()
        sources = [event() for _ in senders]
        with released(*sources):
            for sender, source in zip(senders, sources, strict=True):
                sender.init(3)
                sender.send([5], ready=source.ready)
                sender.send([6, 7])
            for receiver in receivers:
                receiver.send_metadata([1, 2, 3])
            for manager in both.prefill:
                both.write(manager, [5, 6, 7])
        ended([*senders, *receivers])
        for decode in both.decode:
            both.check(decode, [1, 2, 3])


def test_pages_that_were_waited_for_are_verified_too() -> None:
    cfg = config()
    cfg = attrs.evolve(cfg, transfer=attrs.evolve(cfg.transfer, verify="all"))
    with paired(cfg, source=pools(), target=pools()) as pair:
        sender, receiver = pair.open(2)
        sender.init(1)
        receiver.send_metadata([4])
        source = event()
        with released(source):
            sender.send([10], ready=source.ready)
            write(pair, 10, 77)
        finish(sender, receiver)
        assert same_pages(pair.prefill.pools, [10], pair.decode.pools, [4])


@pytest.mark.parametrize("kind", KINDS)
def test_a_manager_that_closes_waits_for_nothing_that_is_not_ready(kind: Kind) -> None:
    source, before = kind(), set(threading.enumerate())
    with released(source):
        with paired() as pair:
            pair.move(1, [0], [0])
            sender, receiver = pair.open(2)
            receiver.send_metadata([4])
            sender.init(1)
            until = soon()
            while sender.poll() is KVPoll.BOOTSTRAPPING and not until.expired:
                pair.prefill.finished(Deadline.after(0.01))
            sender.send([10], ready=source.ready)
            pair.prefill.close()
            failure = sender.failure()
            assert failure is not None
            assert failure.code is FailureCode.SHUTDOWN
            assert sender.record.silent
        # A callable of the caller's that was called before ends when it returns; its thread serves nobody
        # any more.
        left = {thread.name for thread in threading.enumerate() if thread not in before}
        assert {name for name in left if name.startswith("pdcore-ready")} <= (
            {"pdcore-ready-1"} if kind is blocking else set()
        )


# The waiter alone


class Asked:
    """An event that counts how often it is asked."""

    def __init__(self) -> None:
        self.times = 0
        self.asked = threading.Event()

    def is_set(self) -> bool:
        self.times += 1
        self.asked.set()
        return False


def test_a_room_that_is_not_wanted_any_more_is_not_asked_after() -> None:
    waiter, asked, told, done = Waiter(), Asked(), threading.Event(), threading.Event()
    unwanted, is_set = threading.Event(), threading.Event()
    waiter.watch(
        SourceReadiness(RoomId(1), asked.is_set), lambda: not unwanted.is_set(), lambda _: told.set()
    )
    assert asked.asked.wait(30)
    unwanted.set()
    assert told.wait(30)
    times = asked.times
    is_set.set()
    waiter.watch(SourceReadiness(RoomId(2), is_set.is_set), lambda: True, lambda _: done.set())
    assert done.wait(30)
    assert asked.times == times
    waiter.close(soon())


def test_threads_are_used_again_and_one_who_fails_to_go_on_stops_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    waiter, before = Waiter(), set(threading.enumerate())
    errors, went_on = list[Exception | None](), threading.Semaphore(0)

    def then(error: Exception | None) -> None:
        errors.append(error)
        went_on.release()
        raise KeyError("a defect")

    waits: list[Callable[[], object]] = [lambda: None, threading.Event().set, lambda: 1 / 0]
    for wait in waits:
        waiter.watch(SourceReadiness(RoomId(1), waits=wait), lambda: True, then)
        assert went_on.acquire(timeout=30)
    started = [t for t in threading.enumerate() if t not in before and t.name.startswith("pdcore-ready-")]
    assert len(started) <= 3
    waiter.close(soon())
    assert not any(thread.is_alive() for thread in started)
    assert [type(error) for error in errors] == [type(None), type(None), ZeroDivisionError]
    assert caplog.text.count("room 1 could not go on when its source was ready") == 3
    waiter.watch(SourceReadiness(RoomId(1), waits=waits[0]), lambda: True, then)  # closed: nobody waits
    waiter.close(soon())
    assert len(errors) == 3
