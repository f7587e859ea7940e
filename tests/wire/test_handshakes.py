"""Why a handshake failed, as each side can know it: the thinking alone, and what it asks of real sockets."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest
import zmq

from pdcore.config.auth_key import AuthKey
from pdcore.errors import AuthenticationError
from pdcore.wire import Connection, ConnectionEvent, Route
from pdcore.wire.access.callers import SOMEBODY, Callers, Stranger
from pdcore.wire.access.curve import Curve
from pdcore.wire.access.greeting import Greeting
from pdcore.wire.access.handshakes import CURVE, NULL, Handshakes, bound_side_error

KEY = AuthKey("a key of sixteen or more bytes")
ROUTE = Route(b"10.0.0.1:5")
MISMATCH = int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH)
CRYPTOGRAPHIC = int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC)


def event(what: Connection, value: int = 0) -> ConnectionEvent:
    return ConnectionEvent(what, value, "tcp://10.0.0.1:5")


HUNG_UP = event(Connection.FAILED, errno.EPIPE)


class Dialler:
    """One that is told of its connection; it is asked for after two failures, as the channel does it."""

    def __init__(self, *, keyed: bool, speaks: str | None) -> None:
        self.handshakes = Handshakes(keyed=keyed)
        self.speaks = speaks
        self.asked = 0

    def hears(self, *events: ConnectionEvent) -> str | None:
        for each in events:
            error = self.handshakes.heard(ROUTE, each)
            if error is not None:
                return error.happened
            if self.handshakes.wants_to_ask(ROUTE) and each.what is Connection.FAILED:
                self.asked += 1
                if self.speaks is not None:
                    self.handshakes.speaks(ROUTE, self.speaks)
        return None


@pytest.mark.parametrize(
    ("keyed", "speaks", "learns"),
    [
        (True, CURVE, "the peer has another key"),
        (True, NULL, "the peer has no key"),
        (False, CURVE, "the peer requires a key"),
        (False, NULL, None),
        (True, None, None),
        (False, None, None),
        (False, "", "the peer does not speak the control protocol"),
        (True, "PLAIN", "the peer does not speak the control protocol"),
    ],
)
def test_who_is_hung_up_on_three_times_has_asked_what_the_peer_speaks(
    keyed: bool, speaks: str | None, learns: str | None
) -> None:
    dialler = Dialler(keyed=keyed, speaks=speaks)
    assert dialler.hears(HUNG_UP, HUNG_UP) is None
    assert dialler.hears(event(Connection.FAILED, errno.ECONNRESET)) == learns


@pytest.mark.parametrize("what", [Connection.HANDSHAKEN, Connection.CLOSED])
def test_a_peer_that_is_let_in_or_is_not_there_was_only_restarting(what: Connection) -> None:
    dialler = Dialler(keyed=True, speaks=CURVE)
    for _ in range(10):
        assert dialler.hears(HUNG_UP, HUNG_UP, event(what)) is None
    assert dialler.asked == 10


def test_a_handshake_that_ran_out_of_time_is_no_refusal() -> None:
    dialler = Dialler(keyed=True, speaks=CURVE)
    assert dialler.hears(*[event(Connection.FAILED, errno.EAGAIN)] * 10) is None
    assert dialler.asked == 0


def test_a_peer_that_was_forgotten_is_a_new_one() -> None:
    dialler = Dialler(keyed=True, speaks=CURVE)
    dialler.hears(HUNG_UP, HUNG_UP)
    dialler.handshakes.forget(ROUTE)
    dialler.handshakes.speaks(ROUTE, CURVE)
    assert dialler.hears(HUNG_UP, HUNG_UP) is None
    assert dialler.hears(HUNG_UP) == "the peer has another key"


@pytest.mark.parametrize(
    ("keyed", "heard", "learns"),
    [
        (True, event(Connection.MISFIT, MISMATCH), "the peer has no key"),
        (False, event(Connection.MISFIT, MISMATCH), "the peer requires a key"),
        (True, event(Connection.MISFIT, CRYPTOGRAPHIC), "the peer has another key"),
        (True, event(Connection.DENIED, 400), "the peer has another key"),
        (False, event(Connection.MISFIT, 0x10000000), "the peer does not speak the control protocol"),
    ],
)
def test_what_a_dialler_sees_itself_it_knows_at_once(
    keyed: bool, heard: ConnectionEvent, learns: str
) -> None:
    assert Dialler(keyed=keyed, speaks=None).hears(heard) == learns


def test_a_connection_that_ends_in_its_handshake_without_a_reason_was_to_something_else() -> None:
    up, down = event(Connection.CONNECTED), event(Connection.DISCONNECTED)
    assert Dialler(keyed=True, speaks=None).hears(up, down) == "the peer does not speak the control protocol"
    assert Dialler(keyed=True, speaks=None).hears(up, event(Connection.HANDSHAKEN), down, up) is None
    assert Dialler(keyed=True, speaks=None).hears(up, HUNG_UP, down, up, HUNG_UP, down) is None


@pytest.mark.parametrize(
    ("keyed", "how", "text"),
    [
        (True, event(Connection.MISFIT, MISMATCH), "this side requires a key\n  there is: the peer has no "),
        (False, event(Connection.MISFIT, MISMATCH), "this side has no key\n  there is: the peer has "),
        (True, event(Connection.MISFIT, CRYPTOGRAPHIC), "the peer has another key\n  there is: the PDCORE_A"),
        (False, event(Connection.MISFIT, 0x10000001), "the peer does not speak the control protocol\n  ther"),
        (
            True,
            HUNG_UP,
            "it did not finish the handshake\n  there is: it hung up, or said nothing for 10 s: ",
        ),
    ],
)
def test_what_the_bound_side_says_of_a_stranger(keyed: bool, how: ConnectionEvent, text: str) -> None:
    error = bound_side_error(how, keyed=keyed)
    assert isinstance(error, AuthenticationError)
    assert str(error).startswith(text)


# Who it was


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    yield near, far
    near.close()
    far.close()


def test_a_failed_handshake_is_that_of_the_connection_which_is_closed_next(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    near, far = connection
    callers = Callers()
    accepted = [event(Connection.ACCEPTED, end.fileno()) for end in (near, far)]
    failure = event(Connection.MISFIT, MISMATCH)
    assert [callers.heard(e) for e in accepted] == [None, None]
    assert callers.heard(event(Connection.DISCONNECTED, near.fileno())) is None
    assert callers.heard(failure) is None
    assert callers.heard(event(Connection.DISCONNECTED, far.fileno())) == Stranger("127.0.0.1", failure)
    assert callers.heard(event(Connection.DISCONNECTED, far.fileno())) is None


def test_a_failure_after_which_nothing_is_closed_accuses_nobody_else(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    near, _ = connection
    callers = Callers()
    failure = event(Connection.MISFIT, CRYPTOGRAPHIC)
    callers.heard(failure)
    assert callers.heard(event(Connection.ACCEPTED, near.fileno())) == Stranger(SOMEBODY, failure)
    assert callers.heard(event(Connection.DISCONNECTED, near.fileno())) is None


def test_of_a_descriptor_that_is_closed_or_no_connection_nothing_is_known_and_none_is_left_open() -> None:
    reader, writer = os.pipe()
    os.close(writer)
    before = set(os.listdir("/proc/self/fd"))
    callers = Callers()
    for descriptor in (writer, reader):
        callers.heard(event(Connection.ACCEPTED, descriptor))
        callers.heard(HUNG_UP)
        assert callers.heard(event(Connection.DISCONNECTED, descriptor)) == Stranger(SOMEBODY, HUNG_UP)
    assert set(os.listdir("/proc/self/fd")) == before
    os.close(reader)


# Asking


def answer_of(endpoint: str, *, waits: int = 30_000) -> str | None:
    """Ask until there is an answer or nothing more comes."""
    context = zmq.Context()
    greeting = Greeting(context, endpoint)
    answer = None
    while answer is None and greeting.socket.poll(waits):
        answer = greeting.answer()
    greeting.socket.close()
    context.term()
    return answer


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
@pytest.mark.parametrize(("keyed", "speaks"), [(False, NULL), (True, CURVE)])
def test_a_bound_socket_says_which_mechanism_it_speaks(host: str, keyed: bool, speaks: str) -> None:
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.IPV6, 1)
    if keyed:
        Curve(KEY).guard(router)
    port = router.bind_to_random_port(f"tcp://{host}")
    assert answer_of(f"tcp://{host}:{port}") == speaks
    assert not router.poll(0)
    router.close(linger=0)
    context.term()


def test_who_hangs_up_before_it_can_be_asked_has_not_answered() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = zmq.Context()
        greeting = Greeting(context, f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        listener.accept()[0].close()
        while greeting.socket.poll(300):
            assert greeting.answer() is None
        greeting.socket.close()
        context.term()


def test_a_greeting_that_cannot_be_begun_leaves_nothing_open() -> None:
    context = zmq.Context()
    with pytest.raises(zmq.ZMQError):
        Greeting(context, "tcp://nowhere")
    context.term()  # would wait for a socket


@pytest.mark.parametrize(
    ("said", "answer"),
    [(b"", None), (b"\xff" + bytes(8) + b"\x7f", None), (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3, "")],
)
def test_who_does_not_greet_has_not_answered_or_speaks_something_else(
    said: bytes, answer: str | None
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        assert answer_of(f"tcp://127.0.0.1:{listener.getsockname()[1]}", waits=300) == answer
        thread.join(30)
