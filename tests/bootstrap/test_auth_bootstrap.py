"""The shared key on the bootstrap service: requests and answers, forged, repeated and late."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import msgspec
import pytest

from pdcore.bootstrap import BootstrapClient, BootstrapServer, RankRecord, ReplicaQuery, RoomsRecord
from pdcore.bootstrap.auth import CHALLENGE_PATH, LIFE, Credentials
from pdcore.config.auth_key import AuthKey
from pdcore.errors import AuthenticationError, BootstrapError
from pdcore.model import Deadline, Incarnation, RoomId
from pdcore.pairing.topology import DPChoice, Topology

KEY, OTHER = AuthKey("a key of sixteen or more bytes"), AuthKey("some other key of the same kind")
RECORD = RankRecord(Incarnation("a" * 32), "10.0.0.1:5", Topology(), 10.0)
REPLICA = ReplicaQuery(0, RoomId(0))
RANKS = "/v1/ranks"
GONE = f"{RANKS}/{RECORD.incarnation}"


class OwnClock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def soon() -> Deadline:
    return Deadline.after(30)


@pytest.fixture
def clock() -> OwnClock:
    return OwnClock()


@pytest.fixture
def server(clock: OwnClock) -> Iterator[BootstrapServer]:
    with BootstrapServer(clock=clock, auth_key=KEY) as running:
        yield running


@contextmanager
def client_with(key: AuthKey | None) -> Iterator[BootstrapClient]:
    one = BootstrapClient("test", key)
    yield one
    one.close(soon())


@pytest.fixture
def client() -> Iterator[BootstrapClient]:
    with client_with(KEY) as one:
        yield one


def ask(
    server: BootstrapServer, method: str, path: str, body: bytes = b"", signed: Credentials | None = None
) -> int:
    """Send one plain HTTP request; return the status."""
    connection = http.client.HTTPConnection(server.address, timeout=30)
    try:
        connection.request(method, path, body, signed.headers if signed else {})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def challenge(server: BootstrapServer) -> str:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    try:
        connection.request("GET", CHALLENGE_PATH)
        return str(json.loads(connection.getresponse().read())["challenge"])
    finally:
        connection.close()


def signed(
    server: BootstrapServer, method: str = "PUT", path: str = RANKS, body: bytes = b"", key: AuthKey = KEY
) -> Credentials:
    return Credentials.sign(key, challenge(server), method, path, body)


BODY = msgspec.json.encode(RECORD)


def ranks(server: BootstrapServer) -> int:
    """Return how many ranks are registered; health is open to everybody."""
    connection = http.client.HTTPConnection(server.address, timeout=30)
    try:
        connection.request("GET", "/health")
        return int(json.loads(connection.getresponse().read())["ranks"])
    finally:
        connection.close()


def test_with_the_key_everything_works(server: BootstrapServer, client: BootstrapClient) -> None:
    client.register(server.address, RECORD, soon())
    assert client.resolve(server.address, REPLICA, soon()).result(30).ranks == (RECORD,)
    client.register_rooms(server.address, RoomsRecord((RoomId(7),), 0), 30)
    asked = client.resolve(server.address, ReplicaQuery(DPChoice.QUERY, RoomId(7)), soon())
    assert asked.result(30).ranks == (RECORD,)
    client.withdraw(server.address, RECORD.incarnation, soon())
    assert ranks(server) == 0
    assert not server.counts


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", RANKS, BODY),
        ("GET", f"{RANKS}?dp_rank=0&wait=0.001", b""),
        ("PUT", "/v1/rooms", msgspec.json.encode(RoomsRecord((RoomId(1),), 0))),
        ("DELETE", GONE, b""),
    ],
)
def test_a_request_is_answered_only_if_it_is_signed_and_new(
    server: BootstrapServer, client: BootstrapClient, method: str, path: str, body: bytes
) -> None:
    client.register(server.address, RECORD, soon())
    assert ask(server, method, path, body) == 401
    assert ask(server, method, path, body, signed(server, method, path, body, OTHER)) == 401
    good = signed(server, method, path, body)
    forged = [
        ("PUT" if method == "GET" else "GET", path, body, good),
        (method, path + "0", body, good),
        (method, path, body + b" ", good),
        (method, path, body, attrs.evolve(good, code=good.code[:-2])),
        (method, path, body, attrs.evolve(good, nonce=good.nonce[::-1])),
        (method, path, body, attrs.evolve(good, challenge=challenge(server))),
    ]
    for request in forged:
        assert ask(server, *request) == 401
    assert ranks(server) == 1
    assert ask(server, method, path, body, good) in (200, 204)
    assert ask(server, method, path, body, good) == 412
    assert server.counts == {"unauthenticated": 9}


def test_a_recorded_registration_cannot_bring_a_withdrawn_rank_back(
    server: BootstrapServer, client: BootstrapClient
) -> None:
    recorded = signed(server, body=BODY)
    assert ask(server, "PUT", RANKS, BODY, recorded) == 204
    client.withdraw(server.address, RECORD.incarnation, soon())
    assert ask(server, "PUT", RANKS, BODY, recorded) == 412
    assert ranks(server) == 0


def test_a_request_that_was_held_back_too_long_does_not_count(
    server: BootstrapServer, clock: OwnClock
) -> None:
    held = signed(server, body=BODY)
    clock.now += LIFE + 1
    assert ask(server, "PUT", RANKS, BODY, held) == 412
    assert ask(server, "PUT", RANKS, BODY, signed(server, body=BODY)) == 204


@pytest.mark.parametrize("made_up", ["", "zz", "00", "0" * 112])
def test_a_challenge_that_the_service_did_not_make_does_not_count(
    server: BootstrapServer, made_up: str
) -> None:
    assert ask(server, "PUT", RANKS, BODY, Credentials.sign(KEY, made_up, "PUT", RANKS, BODY)) == 412


def test_a_challenge_of_an_earlier_life_does_not_count_and_clients_notice_nothing(
    client: BootstrapClient,
) -> None:
    with BootstrapServer(auth_key=KEY) as first:
        client.register(first.address, RECORD, soon())
        old, port = signed(first, body=BODY), int(first.address.rpartition(":")[2])
    with BootstrapServer(port=port, auth_key=KEY) as second:
        assert ask(second, "PUT", RANKS, BODY, old) == 412
        client.register(second.address, RECORD, soon())
        assert ranks(second) == 1


def test_a_client_with_another_key_or_none_is_told_so(server: BootstrapServer) -> None:
    for key, there_is in ((None, "is missing: it has no key"), (OTHER, "is wrong: its key is another")):
        with client_with(key) as one:
            with pytest.raises(AuthenticationError) as caught:
                one.register(server.address, RECORD, soon())
            assert caught.value.happened == (
                f"the bootstrap service requires its key (bootstrap service {server.address})"
            )
            assert caught.value.there_is == f"the code of the request {there_is}"
            with pytest.raises(AuthenticationError):
                one.resolve(server.address, REPLICA, soon()).result(30)
            one.withdraw(server.address, RECORD.incarnation, soon())
    assert ranks(server) == 0


def test_a_client_with_a_key_does_not_believe_a_service_without_one(client: BootstrapClient) -> None:
    with BootstrapServer() as server, pytest.raises(AuthenticationError) as caught:
        client.register(server.address, RECORD, soon())
    assert "the bootstrap service has no key" in caught.value.happened
    assert caught.value.there_is == "the client has PDCORE_AUTH_KEY (auth_key) set"


def test_everybody_may_ask_for_the_health(server: BootstrapServer) -> None:
    assert ask(server, "GET", "/health") == 503
    assert not server.counts


def test_turned_away_clients_are_logged_once_with_their_address(
    server: BootstrapServer, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        assert ask(server, "DELETE", GONE) == 401
    assert server.counts == {"unauthenticated": 20}
    (record,) = [r for r in caplog.records if r.name == "pdcore.bootstrap"]
    assert record.getMessage() == (
        "unauthenticated request, 127.0.0.1: the code of the request is missing: it has no key"
    )


class Impostor(http.server.BaseHTTPRequestHandler):
    """Answers like the service, without the key: with the answer that it once heard, if it has one."""

    recorded_code = ""

    def do_GET(self) -> None:
        asked_for_one = self.path == CHALLENGE_PATH
        body = b'{"challenge": "00"}' if asked_for_one else msgspec.json.encode({"ranks": [RECORD]})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if self.recorded_code:
            self.send_header("PDCore-Answer-Code", self.recorded_code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("given", ["", "ab" * 32, "ü"])
def test_an_answer_without_a_right_code_is_not_believed(client: BootstrapClient, given: str) -> None:
    handler = type("Handler", (Impostor,), {"recorded_code": given.encode().decode("latin-1")})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        address = f"127.0.0.1:{site.server_port}"
        with pytest.raises(AuthenticationError) as caught:
            client.resolve(address, REPLICA, soon()).result(60)
        site.shutdown()
        thread.join(30)
    assert caught.value.happened == f"the answer cannot be believed (bootstrap service {address})"
    assert caught.value.there_is == "HTTP 200 without a right code: somebody without the key answered"


def test_a_refusal_of_the_service_is_signed_too(server: BootstrapServer, client: BootstrapClient) -> None:
    with pytest.raises(BootstrapError) as caught:
        client.register(server.address, attrs.evolve(RECORD, lease=-1.0), soon())
    assert caught.value.happened.startswith("a lease is out of range")
