"""A short request beside a long one of the same pair: in turns, a piece at a time."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from types import ModuleType

import attrs
import numpy as np
import pytest
from distributions import install
from pair import Pair, config, finish, paired, pools, same_pages, soon
from recorder import Recorder

from pdcore import Deadline, KVLayout, KVPoll, KVReceiver, KVSender, Role
from pdcore.events import ChunkSubmitted, Event, RoomEnded
from pdcore.prefill.lanes.pace import Pace
from pdcore.prefill.lanes.turns import SHARED_BYTES

LONG = list(range(40))
BROAD = KVLayout.heads(layers=range(16), kv_heads=2, head_dim=32, page_size=4, num_pages=2100)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """An engine that takes 10 entries at once, and keeps every write until a test lets it go."""
    install(monkeypatch, "scripted")
    module = importlib.import_module("pd_scripted")
    module.script.reset()
    yield module
    module.script.reset()


def begin(pair: Pair, room: int, source: list[int], target: list[int]) -> tuple[KVSender, KVReceiver]:
    """Open a room whose pages decode has named, so that the next ``send`` goes out."""
    sender, receiver = pair.open(room)
    sender.init(len(source))
    receiver.send_metadata(target)
    deadline = soon()
    while sender.poll() is KVPoll.BOOTSTRAPPING:
        assert not deadline.expired
        pair.decode.finished(Deadline.after(0.005))
    return sender, receiver


def scattered(pages: int, seed: int) -> list[int]:
    return [int(p) for p in np.random.default_rng(seed).permutation(pages)]


def let_go_until(module: ModuleType, sender: KVSender) -> int:
    """Let the oldest write go, one after the other, until a room has ended; return how many."""
    deadline, count, looked = soon(), 0, threading.Event()
    while not sender.poll().terminal:
        assert not deadline.expired
        if len(module.script.held) > count:
            module.script.held[count].let_go()
            count += 1
        else:
            looked.wait(0.001)
    return count


def test_a_short_request_goes_out_between_two_pieces_of_a_long_one(held: ModuleType) -> None:
    with paired(backend="scripted") as pair:
        short = begin(pair, 2, [63], [63])
        long = begin(pair, 1, LONG, LONG)
        held.script.hold = True
        long[0].send(LONG[::-1])
        deadline = soon()
        while not held.script.held:
            assert not deadline.expired
            threading.Event().wait(0.001)
        short[0].send([63])
        assert let_go_until(held, short[0]) <= 8
        assert long[0].poll() is KVPoll.TRANSFERRING
        let_go_until(held, long[0])
        finish(*short)
        finish(*long)
        assert same_pages(pair.prefill.pools, LONG[::-1], pair.decode.pools, LONG)
    assert held.script.most_outstanding <= 10


def test_chunks_of_one_room_keep_their_order(held: ModuleType) -> None:
    events = Recorder()
    with paired(backend="scripted", subscribers=[events]) as pair:
        sender, receiver = begin(pair, 1, LONG, LONG)
        for page in range(0, 40, 4):
            sender.send(LONG[page : page + 4])
        finish(sender, receiver)
        assert same_pages(pair.prefill.pools, LONG, pair.decode.pools, LONG)
    assert [e.is_last for e in events.of(ChunkSubmitted)] == [False] * 9 + [True]


class Submitters:
    """The threads on which prefill submitted chunks."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, ChunkSubmitted) and event.node.role is Role.PREFILL:
            self.names.append(threading.current_thread().name)


@pytest.mark.parametrize("asked_last", [True, False])
@pytest.mark.parametrize(
    ("backend", "thread"), [("local", "pdcore-prefill-control"), ("mooncake_tcp", "pdcore-lane-")]
)
def test_what_is_small_needs_no_lane_if_writes_are_prompt(
    backend: str, thread: str, asked_last: bool
) -> None:
    threads = Submitters()
    with paired(backend=backend, subscribers=[threads]) as pair:
        pair.move(9, [1], [1])
        threads.names.clear()
        if asked_last:
            sender, receiver = pair.open(1)
            sender.init(1)
            sender.send([5])
            receiver.send_metadata([6])
        else:
            sender, receiver = begin(pair, 1, [5], [6])
            sender.send([5])
        finish(sender, receiver)
        assert same_pages(pair.prefill.pools, [5], pair.decode.pools, [6])
    (submitted,) = threads.names
    assert submitted.startswith(thread)


def test_small_ones_that_are_many_together_need_no_lane_either() -> None:
    threads, each = Submitters(), 1 + SHARED_BYTES // BROAD.page_bytes // 2
    rooms = 5
    source, target = pools(BROAD), pools(BROAD)
    with paired(backend="local", source=source, target=target, subscribers=[threads]) as pair:
        pair.move(99, [1], [1])
        threads.names.clear()
        pages = [list(range(each * n, each * (n + 1))) for n in range(rooms)]
        handles = [begin(pair, n, own, own) for n, own in enumerate(pages)]
        there, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            there.set()
            go_on.wait(30)

        pair.prefill.channel.call(hold)
        assert there.wait(30)
        for (sender, _), own in zip(handles, pages, strict=True):
            sender.send(own)
        go_on.set()
        for sender, receiver in handles:
            finish(sender, receiver)
        for own in pages:
            assert same_pages(source, own, target, own)
    assert threads.names == ["pdcore-prefill-control"] * rooms


def test_what_many_threads_send_at_once_is_served_by_one_at_a_time_and_none_is_left(held: ModuleType) -> None:
    with paired(backend="scripted") as pair:
        rooms = [pair.open(number) for number in range(1, 9)]
        for page, (sender, receiver) in enumerate(rooms):
            sender.init(2)
            receiver.send_metadata([page, page + 8])

        def send(sender: KVSender, page: int) -> None:
            sender.send([page + 20])
            sender.send([page + 30])

        threads = [
            threading.Thread(target=send, args=(sender, page)) for page, (sender, _) in enumerate(rooms)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for sender, receiver in rooms:
            finish(sender, receiver)
        for page in range(8):
            assert same_pages(pair.prefill.pools, [page + 20, page + 30], pair.decode.pools, [page, page + 8])


@pytest.mark.parametrize(("backend", "pages"), [("local", 2000), ("nixl_tcp", 2000), ("mooncake_tcp", 300)])
def test_a_page_behind_many_scattered_ones_ends_before_them(backend: str, pages: int) -> None:
    events = Recorder()
    cfg = attrs.evolve(config(), timeouts=config(request=100).timeouts)
    source, target = pools(BROAD), pools(BROAD)
    with paired(cfg, backend=backend, source=source, target=target, subscribers=[events]) as pair:
        pair.move(9, [2099], [2099])
        here, there = scattered(pages, 1), scattered(pages, 2)
        long = begin(pair, 1, here, there)
        short = begin(pair, 2, [2050], [2060])
        long[0].send(here)
        events.wait_for(ChunkSubmitted, Role.PREFILL, lambda e: e.room == 1)
        short[0].send([2050])
        finish(*short)
        finish(*long)
        assert same_pages(source, here, target, there)
        assert same_pages(source, [2050], target, [2060])
    ended = [e.room for e in events.of(RoomEnded, Role.PREFILL)]
    assert ended == [9, 2, 1]


def test_pieces_grow_and_shrink_with_what_they_take() -> None:
    pace = Pace()
    first = pace.entries, pace.nbytes
    for _ in range(50):
        pace.took(1.0)
    slow = pace.entries, pace.nbytes
    for _ in range(50):
        pace.took(0.0001)
    fast = pace.entries, pace.nbytes
    assert slow == (64, 2**22)
    assert first == (1024, 2**26)
    assert fast == (2**18, 2**34)
    assert [Pace(cost).entries for cost in (0.4e-6, 45e-6, 100e-6, 1.0)] == [1024, 1024, 512, 64]
    for _ in range(10):
        pace.took(0.03)
    steady = pace.entries
    pace.took(0.036)
    assert pace.entries == steady
