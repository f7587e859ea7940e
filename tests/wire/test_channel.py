from __future__ import annotations

import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import attrs
import numpy as np
import pytest
import zmq
from wire_samples import LIFE, METADATA

from pdcore.config.auth_key import AuthKey
from pdcore.errors import BootstrapError, WireError
from pdcore.model import Deadline, Generation, Incarnation, RoomId, new_incarnation
from pdcore.wire import AuxRow, Channel, Codec, Heartbeat, Message, Released, RequestMetadata, Route
from pdcore.wire.stamp import Stamps

NEVER = 3600.0
SMALL = 64 * 1024


class End:
    """One started channel, and what it received."""

    def __init__(
        self,
        name: str,
        *,
        bound: bool,
        tick: float = NEVER,
        most: int = SMALL,
        key: AuthKey | None = None,
    ) -> None:
        self.incarnation = new_incarnation()
        self.received: queue.Queue[tuple[Route, Message]] = queue.Queue()
        self.ticks: queue.Queue[str] = queue.Queue()
        self.raises: Exception | None = None
        self.channel = Channel(
            name,
            self.incarnation,
            on_message=self._on_message,
            on_tick=lambda: self.ticks.put(threading.current_thread().name),
            tick=tick,
            max_message_bytes=most,
            auth_key=key,
        )
        self.address = self.channel.bind("127.0.0.1", 0) if bound else ""
        self.channel.start()

    def _on_message(self, route: Route, message: Message) -> None:
        if self.raises is not None:
            error, self.raises = self.raises, None
            raise error
        self.received.put((route, message))

    def next(self) -> Message:
        return self.received.get(timeout=30)[1]

    def settled(self) -> None:
        """Wait until the owner thread has done everything that was ordered before."""
        done = threading.Event()
        self.channel.call(done.set)
        assert done.wait(30)

    def close(self) -> None:
        self.channel.close(soon())


def soon() -> Deadline:
    return Deadline.after(30)


def released(number: int, generation: int = 1) -> Released:
    return Released(RoomId(number), Generation(generation))


@pytest.fixture
def prefill() -> Iterator[End]:
    end = End("prefill", bound=True)
    yield end
    end.close()


@pytest.fixture
def decode() -> Iterator[End]:
    end = End("decode", bound=False)
    yield end
    end.close()


class Stranger:
    """A raw socket that says whatever it likes."""

    def __init__(self, address: str, name: bytes) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, name)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://{address}")
        self._stamps = Stamps[str](new_incarnation())

    def say(self, *frames: bytes) -> None:
        self._socket.send_multipart([self._stamps.next(), *frames])

    def repeat(self, stamp: bytes, message: Message) -> None:
        """Say a message with any stamp."""
        self._socket.send_multipart([stamp, *map(bytes, Codec.encode(message))])

    def close(self) -> None:
        self._socket.close()
        self._context.term()


@pytest.fixture
def stranger(prefill: End) -> Iterator[Stranger]:
    someone = Stranger(prefill.address, b"strange\xff")
    yield someone
    someone.close()


# Carrying


def test_what_goes_on_for_ever_keeps_no_message_from_being_heard(prefill: End, decode: End) -> None:
    turns: list[None] = []
    over = threading.Event()

    def go_on() -> None:
        turns.append(None)
        if not over.is_set():
            prefill.channel.soon(go_on)

    prefill.channel.soon(go_on)
    decode.channel.post(decode.channel.dial(prefill.address), released(1))
    try:
        assert prefill.next() == released(1)
    finally:
        over.set()
    assert len(turns) > 1


@pytest.mark.parametrize("size", [100, 64 * 1024, 300_000])
def test_rows_of_any_size_arrive_as_they_were(size: int) -> None:
    row = AuxRow(RoomId(1), Generation(1), np.random.default_rng(size).bytes(size))
    with (
        closing(End("prefill", bound=True, most=2**20)) as prefill,
        closing(End("decode", bound=False, most=2**20)) as decode,
    ):
        decode.channel.post(decode.channel.dial(prefill.address), row)
        assert prefill.next() == row


def test_messages_on_one_route_keep_their_order_both_ways(prefill: End, decode: End) -> None:
    there = decode.channel.dial(prefill.address)
    for number in range(3000):
        decode.channel.post(there, released(number))
    back, first = prefill.received.get(timeout=30)
    assert [first, *(prefill.next() for _ in range(2999))] == [released(n) for n in range(3000)]
    assert back == decode.incarnation.encode()
    for number in range(3000):
        prefill.channel.post(back, released(number))
    assert [decode.received.get(timeout=30) for _ in range(3000)] == [
        (there, released(n)) for n in range(3000)
    ]


def test_nothing_is_lost_or_late_where_many_threads_post_both_ways_at_once(prefill: End, decode: End) -> None:
    there = decode.channel.dial(prefill.address)
    decode.channel.post(there, released(0, 1))
    back, _ = prefill.received.get(timeout=30)

    def post(channel: Channel, route: Route, thread: int) -> None:
        for number in range(500):
            channel.post(route, released(number, thread))

    ways = [(decode.channel, there), (prefill.channel, back)]
    posting = [threading.Thread(target=post, args=(*way, thread)) for way in ways for thread in (1, 2, 3)]
    for thread in posting:
        thread.start()
    for end in (prefill, decode):  # neither ticks: what a sender saw and told nobody would lie there
        got = [end.next() for _ in range(1500)]
        for thread_id in (1, 2, 3):
            mine = [m for m in got if isinstance(m, Released) and m.generation == thread_id]
            assert mine == [released(number, thread_id) for number in range(500)]
    for thread in posting:
        thread.join()


def test_a_post_waits_for_what_was_ordered_before(prefill: End, decode: End) -> None:
    held, go = threading.Event(), threading.Event()
    there = Route(prefill.address.encode())

    def hold() -> None:
        held.set()
        go.wait(30)

    decode.channel.call(hold)
    assert held.wait(30)
    decode.channel.dial(prefill.address)
    decode.channel.post(there, released(1))
    go.set()
    assert prefill.next() == released(1)
    assert not decode.channel.counts


def test_arrays_arrive_in_their_own_frames(prefill: End, decode: End) -> None:
    decode.channel.post(decode.channel.dial(prefill.address), METADATA)
    got = prefill.next()
    assert isinstance(got, RequestMetadata)
    assert got.pages.tolist() == METADATA.pages.tolist()
    assert [items.tolist() for items in got.state_indices] == [[9], []]


@pytest.mark.parametrize("key", [None, AuthKey("a key of sixteen or more bytes")])
def test_a_message_much_larger_than_a_piece_arrives_whole(key: AuthKey | None) -> None:
    pages = np.arange(300_000)
    there = End("prefill", bound=True, most=2**24, key=key)
    here = End("decode", bound=False, most=2**24, key=key)
    here.channel.post(here.channel.dial(there.address), attrs.evolve(METADATA, pages=pages))
    back, got = there.received.get(timeout=30)
    assert isinstance(got, RequestMetadata)
    assert np.array_equal(got.pages, pages)
    row = bytes(range(256)) * 10_000
    there.channel.post(back, AuxRow(RoomId(1), Generation(1), row))
    assert here.next() == AuxRow(RoomId(1), Generation(1), row)
    for end in (here, there):
        assert not end.channel.counts
        end.close()


def test_many_threads_may_post_and_each_keeps_its_order(prefill: End, decode: End) -> None:
    there = decode.channel.dial(prefill.address)
    start = threading.Barrier(8)

    def post(thread: int) -> None:
        start.wait(30)
        for number in range(250):
            decode.channel.post(there, released(number, thread + 1))

    threads = [threading.Thread(target=post, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    got = [prefill.next() for _ in range(2000)]
    for i in range(8):
        mine = [message for message in got if isinstance(message, Released) and message.generation == i + 1]
        assert mine == [released(n, i + 1) for n in range(250)]


def test_a_post_wakes_a_channel_that_sleeps_for_an_hour(prefill: End, decode: End) -> None:
    there = decode.channel.dial(prefill.address)
    for number in range(20):
        decode.channel.post(there, released(number))
        assert prefill.next() == released(number)


def test_two_peers_are_told_apart_by_their_incarnation(prefill: End, decode: End) -> None:
    other = End("other", bound=False)
    for end in (decode, other):
        end.channel.post(end.channel.dial(prefill.address), Heartbeat(end.incarnation))
    got = dict(prefill.received.get(timeout=30) for _ in range(2))
    assert got == {Route(end.incarnation.encode()): Heartbeat(end.incarnation) for end in (decode, other)}
    prefill.channel.post(Route(other.incarnation.encode()), released(1))
    prefill.channel.post(Route(decode.incarnation.encode()), released(2))
    assert (other.next(), decode.next()) == (released(1), released(2))
    other.close()


def test_dialling_twice_is_one_connection(prefill: End, decode: End) -> None:
    routes = {decode.channel.dial(prefill.address) for _ in range(3)}
    assert len(routes) == 1
    decode.channel.post(routes.pop(), released(1))
    back, _ = prefill.received.get(timeout=30)
    prefill.channel.post(back, released(2))
    assert decode.next() == released(2)
    decode.settled()
    assert decode.received.empty()


def test_ticks_and_messages_come_on_the_owner_thread() -> None:
    end = End("ticking", bound=False, tick=0.001)
    assert {end.ticks.get(timeout=30) for _ in range(5)} == {"pdcore-ticking-control"}
    end.close()


# What goes wrong


@pytest.mark.parametrize(
    "frames",
    [(b"",), (b"GET / HTTP/1.1",), (b"PDKV\0\1\0\x08\0\0\xc1",), (b"PDKV\0\2\0\x08\0\0",), (b"x",) * 100],
)
def test_a_malformed_message_is_counted_and_logged_with_its_sender(
    prefill: End, stranger: Stranger, frames: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    stranger.say(*frames)
    stranger.say(*(bytes(frame) for frame in Codec.encode(Heartbeat(LIFE))))
    assert prefill.next() == Heartbeat(LIFE)
    assert prefill.channel.counts == {"malformed": 1}
    assert prefill.channel.alive
    (record,) = caplog.records
    assert record.name == "pdcore.wire"
    assert r"malformed message, peer strange\xff: a " in record.getMessage()
    assert "to do: " in record.getMessage()


def test_what_comes_twice_or_late_is_dropped_until_the_sender_is_another_life(
    prefill: End, stranger: Stranger
) -> None:
    first, second = Stamps[str](LIFE), Stamps[str](new_incarnation())
    one, two = first.next(), first.next()
    for number, stamp in enumerate((two, one, two, first.next(), second.next(), second.next())):
        stranger.repeat(stamp, released(number))
    assert [prefill.next() for _ in range(4)] == [released(n) for n in (0, 3, 4, 5)]
    assert prefill.channel.counts == {"repeated": 2}


def test_a_message_without_a_stamp_is_malformed(prefill: End, stranger: Stranger) -> None:
    stranger.repeat(b"short", released(1))
    stranger.say(*map(bytes, Codec.encode(released(2))))
    assert prefill.next() == released(2)
    assert prefill.channel.counts == {"malformed": 1}


def test_a_message_without_any_frame_is_malformed(prefill: End) -> None:
    context = zmq.Context()
    request = context.socket(zmq.DEALER)
    request.setsockopt(zmq.LINGER, 0)
    request.connect(f"tcp://{prefill.address}")
    request.send(b"")
    frames = [bytes(frame) for frame in Codec.encode(Heartbeat(LIFE))]
    request.send_multipart([Stamps[str](LIFE).next(), *frames])
    assert prefill.next() == Heartbeat(LIFE)
    assert prefill.channel.counts == {"malformed": 1}
    request.close()
    context.term()


@pytest.mark.parametrize(
    ("error", "counted"),
    [(WireError("it is odd", "1", "mend it"), "refused"), (ZeroDivisionError("a bug"), "errors")],
)
def test_a_handler_that_raises_does_not_end_the_thread(
    prefill: End, decode: End, error: Exception, counted: str, caplog: pytest.LogCaptureFixture
) -> None:
    there = decode.channel.dial(prefill.address)
    prefill.raises = error
    decode.channel.post(there, released(1))
    decode.channel.post(there, released(2))
    assert prefill.next() == released(2)
    assert prefill.channel.counts == {counted: 1}
    assert "Released" in caplog.text


def test_an_order_that_raises_does_not_end_the_thread(decode: End) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    decode.channel.call(broken)
    decode.settled()
    assert decode.channel.counts == {"errors": 1}


def test_a_message_to_an_unknown_peer_is_counted(prefill: End, caplog: pytest.LogCaptureFixture) -> None:
    prefill.channel.post(Route(b"nobody"), released(1))
    prefill.settled()
    assert prefill.channel.counts == {"undeliverable": 1}
    assert "undeliverable message, peer nobody: " in caplog.text


def test_a_message_to_a_peer_that_was_never_dialled_is_counted(decode: End) -> None:
    decode.channel.post(Route(b"127.0.0.1:1"), released(1))
    decode.settled()
    assert decode.channel.counts == {"undeliverable": 1}


def test_after_hanging_up_messages_are_undeliverable(prefill: End, decode: End) -> None:
    there = decode.channel.dial(prefill.address)
    decode.channel.post(there, released(1))
    assert prefill.next() == released(1)
    decode.channel.hang_up(there)
    decode.channel.hang_up(there)
    decode.channel.post(there, released(2))
    decode.settled()
    assert decode.channel.counts == {"undeliverable": 1}
    decode.channel.post(decode.channel.dial(prefill.address), released(3))
    assert prefill.next() == released(3)


@pytest.mark.parametrize("last_words", [True, False])
def test_connections_to_one_place_are_told_apart(last_words: bool, prefill: End, decode: End) -> None:
    for n in range(3):
        route = decode.channel.dial(f"{prefill.address}#{n}")
        decode.channel.post(route, released(n))
        who, heard = prefill.received.get(timeout=30)
        assert heard == released(n)
        prefill.channel.post(who, released(n, 9))
        assert decode.received.get(timeout=30) == (route, released(n, 9))
        decode.channel.hang_up(route, last_words=last_words)


def test_a_message_that_the_peer_would_not_take_is_not_sent(
    prefill: End, decode: End, caplog: pytest.LogCaptureFixture
) -> None:
    there = decode.channel.dial(prefill.address)
    decode.channel.post(there, AuxRow(RoomId(1), Generation(1), bytes(SMALL)))
    decode.channel.post(there, released(2))
    assert prefill.next() == released(2)
    assert decode.channel.counts == {"undeliverable": 1}
    assert f"the limit is {SMALL}" in caplog.text
    assert "raise control.max_message_bytes on both sides" in caplog.text


def test_an_oversized_message_of_a_stranger_is_dropped_and_others_are_served(
    prefill: End, decode: End, stranger: Stranger
) -> None:
    stranger.say(*(bytes(f) for f in Codec.encode(Heartbeat(Incarnation("before")))))
    assert prefill.next() == Heartbeat(Incarnation("before"))
    stranger.say(bytes(SMALL + 1))
    decode.channel.post(decode.channel.dial(prefill.address), released(2))
    assert prefill.next() == released(2)
    assert prefill.channel.alive
    assert prefill.received.empty()


def test_a_message_of_a_peer_with_a_larger_limit_is_malformed_and_others_are_served(
    prefill: End, caplog: pytest.LogCaptureFixture
) -> None:
    generous = End("decode", bound=False, most=2**24)
    route = generous.channel.dial(prefill.address)
    generous.channel.post(route, AuxRow(RoomId(1), Generation(1), bytes(3 * SMALL)))
    generous.channel.post(route, released(2))
    assert prefill.next() == released(2)
    assert prefill.channel.counts == {"malformed": 1}
    assert "a control message is larger than a peer takes" in caplog.text
    assert f"the limit is {SMALL}" in caplog.text
    generous.close()


def test_a_port_in_use_is_a_clear_error(prefill: End) -> None:
    port = int(prefill.address.rpartition(":")[2])
    channel = Channel(
        "second",
        new_incarnation(),
        on_message=lambda route, message: None,
        on_tick=lambda: None,
        tick=NEVER,
        max_message_bytes=SMALL,
    )
    with pytest.raises(BootstrapError) as caught:
        channel.bind("127.0.0.1", port)
    assert caught.value.happened == f"the control port 127.0.0.1:{port} cannot be bound"
    assert caught.value.there_is.startswith("Address already in use")
    assert "choose a free port (0 takes any)" in caught.value.to_do
    with pytest.raises(BootstrapError) as caught:
        channel.bind("192.0.2.1", 0)
    assert caught.value.happened == "the control port 192.0.2.1:0 cannot be bound"
    channel.close(soon())


@pytest.mark.parametrize("sockets", [3, 4, 5])
def test_a_peer_for_which_there_is_no_descriptor_is_named_and_the_others_are_served(
    prefill: End, sockets: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Enough for one peer, and for nothing, one or two of the three sockets of the next."""
    monkeypatch.setattr("pdcore.wire.sockets._MOST_SOCKETS", sockets)
    second = End("prefill", bound=True)
    poor = End("decode", bound=False)
    route = poor.channel.dial(prefill.address)
    for _ in range(3):
        poor.channel.post(poor.channel.dial(second.address), released(1))
    poor.channel.post(route, released(2))
    assert prefill.next() == released(2)
    poor.settled()
    assert poor.channel.counts == {"refused": 3, "undeliverable": 3}
    assert f"peer {second.address} cannot be dialled\n  there is: Too many open files" in caplog.text
    poor.close()
    second.close()
    assert not poor.channel.alive


def test_an_address_that_is_none_is_named_and_does_not_keep_close_waiting(
    prefill: End, decode: End, caplog: pytest.LogCaptureFixture
) -> None:
    for address in ("nowhere", "host name:80", "127.0.0.1:x"):
        decode.channel.dial(address)
    decode.channel.post(decode.channel.dial(prefill.address), released(1))
    assert prefill.next() == released(1)
    assert decode.channel.counts == {"refused": 3}
    assert "peer nowhere cannot be dialled\n  there is: Invalid argument" in caplog.text


# The end


def test_what_was_posted_before_close_still_arrives(prefill: End) -> None:
    end = End("brief", bound=False)
    there = end.channel.dial(prefill.address)
    for number in range(500):
        end.channel.post(there, released(number))
    end.close()
    assert [prefill.next() for _ in range(500)] == [released(n) for n in range(500)]


def test_close_leaves_no_thread_no_port_and_no_descriptor() -> None:
    def descriptors() -> set[str]:
        links = ((fd, f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return {f"{fd} {os.readlink(link)}" for fd, link in links if os.path.lexists(link)}

    before = descriptors()
    prefill, decode = End("p", bound=True), End("d", bound=False)
    decode.channel.post(decode.channel.dial(prefill.address), released(1))
    assert prefill.next() == released(1)
    decode.close()
    prefill.close()
    assert not prefill.channel.alive
    assert not decode.channel.alive
    assert not any(
        thread.name in ("pdcore-p-control", "pdcore-d-control") for thread in threading.enumerate()
    )
    host, _, port = prefill.address.rpartition(":")
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind((host, int(port)))
    assert descriptors() <= before


def test_close_may_come_twice_and_before_start() -> None:
    end = End("twice", bound=True)
    end.close()
    end.close()
    unstarted = Channel(
        "unstarted",
        LIFE,
        on_message=lambda route, message: None,
        on_tick=lambda: None,
        tick=NEVER,
        max_message_bytes=SMALL,
    )
    unstarted.bind("127.0.0.1", 0)
    unstarted.close(soon())
    unstarted.close(soon())


def test_orders_after_close_are_harmless() -> None:
    end = End("late", bound=True)
    end.close()
    orders: list[Callable[[], object]] = [
        lambda: end.channel.post(Route(b"x"), released(1)),
        lambda: end.channel.dial("127.0.0.1:1"),
        lambda: end.channel.hang_up(Route(b"x")),
    ]
    for order in orders:
        order()
    assert not end.channel.alive


def test_a_peer_that_went_away_does_not_keep_close_waiting_for_ever(prefill: End) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{unused.getsockname()[1]}"
    end = End("lonely", bound=False)
    end.channel.post(end.channel.dial(nobody), released(1))
    end.close()
    assert not end.channel.alive
