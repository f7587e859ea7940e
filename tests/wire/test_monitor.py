"""What happens to connections, as libzmq tells it, on both sides and over real sockets."""

from __future__ import annotations

import queue
import socket
from collections.abc import Iterator

import pytest
import zmq
from pair import soon

from pdcore.model import Generation, RoomId, new_incarnation
from pdcore.wire import Channel, Connection, ConnectionEvent, Message, Released, Route
from pdcore.wire.monitor import Monitor

NEVER = 3600.0
Told = tuple[Route | None, ConnectionEvent]


class End:
    """A channel, what it received, and what it was told of its connections."""

    def __init__(self, *, bind: str = "") -> None:
        self.told: queue.Queue[Told] = queue.Queue()
        self.received: queue.Queue[Message] = queue.Queue()
        self.channel = Channel(
            "watched",
            new_incarnation(),
            on_message=lambda route, message: self.received.put(message),
            on_tick=lambda: None,
            tick=NEVER,
            max_message_bytes=2**16,
            on_connection=self._on_connection,
        )
        host, _, port = bind.rpartition(":")
        self.address = self.channel.bind(host, int(port)) if bind else ""
        self.channel.start()

    def _on_connection(self, route: Route | None, event: ConnectionEvent) -> None:
        self.told.put((route, event))

    def until(self, what: Connection) -> Told:
        """Wait for an event of this kind, past all others."""
        while True:
            told = self.told.get(timeout=30)
            if told[1].what is what:
                return told


@pytest.fixture
def dialler() -> Iterator[End]:
    end = End()
    yield end
    end.channel.close(soon())


def released() -> Released:
    return Released(RoomId(1), Generation(1))


def test_both_sides_are_told_that_a_connection_came_and_went(dialler: End) -> None:
    bound = End(bind="127.0.0.1:0")
    route = dialler.channel.dial(bound.address)
    assert dialler.until(Connection.CONNECTED)[0] == route
    up = dialler.until(Connection.HANDSHAKEN)
    assert up == (route, ConnectionEvent(Connection.HANDSHAKEN, 0, f"tcp://{bound.address}"))
    assert bound.until(Connection.ACCEPTED)[0] is None
    assert bound.until(Connection.HANDSHAKEN)[0] is None
    dialler.channel.hang_up(route)
    assert bound.until(Connection.DISCONNECTED)[0] is None
    dialler.channel.dial(bound.address)
    dialler.until(Connection.HANDSHAKEN)
    bound.channel.close(soon())
    assert dialler.until(Connection.DISCONNECTED)[0] == route


def test_a_peer_that_is_not_there_is_tried_again_until_it_is(dialler: End) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{unused.getsockname()[1]}"
    route = dialler.channel.dial(nobody)
    for _ in range(2):
        assert dialler.until(Connection.CLOSED)[0] == route
        assert dialler.until(Connection.RETRIED)[1].value > 0
    there = End(bind=nobody)
    assert dialler.until(Connection.HANDSHAKEN)[0] == route
    dialler.channel.post(route, released())
    assert there.received.get(timeout=30) == released()
    there.channel.close(soon())


def test_who_hangs_up_when_it_is_told_hears_no_more_of_that_route(dialler: End) -> None:
    bound = End(bind="127.0.0.1:0")
    told: list[Told] = []

    def once(route: Route | None, event: ConnectionEvent) -> None:
        told.append((route, event))
        assert route is not None
        dialler.channel._hang_up(route)

    dialler.channel._on_connection = once
    route = dialler.channel.dial(bound.address)
    bound.until(Connection.DISCONNECTED)
    assert [gone for gone, _ in told] == [route]
    assert dialler.channel.alive
    bound.channel.close(soon())


def test_a_callback_that_raises_ends_nothing(dialler: End, caplog: pytest.LogCaptureFixture) -> None:
    def broken(route: Route | None, event: ConnectionEvent) -> None:
        raise ZeroDivisionError

    bound = End(bind="127.0.0.1:0")
    bound.channel._on_connection = broken
    route = dialler.channel.dial(bound.address)
    dialler.channel.post(route, released())
    assert bound.received.get(timeout=30) == released()
    assert bound.channel.alive
    bound.channel.close(soon())
    assert bound.channel.counts["errors"] >= 2
    assert "handling a connection accepted failed, peer of those that dial" in caplog.text


def test_a_socket_of_which_nobody_reads_what_happens_goes_on_serving() -> None:
    """Of 4,000 connections the monitor holds the events, and libzmq's thread waits for nobody."""
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    monitor = Monitor(router)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    for _ in range(4000):
        socket.create_connection(("127.0.0.1", port)).close()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(f"tcp://127.0.0.1:{port}")
    dealer.send(b"served")
    assert router.poll(30_000)
    assert len(monitor.events(10)) == 10
    assert len(monitor.events(100_000)) > 4000
    assert monitor.events(1) == []
    monitor.close()
    for each in (dealer, router):
        each.close(linger=0)
    context.term()
