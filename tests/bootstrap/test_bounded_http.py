"""What strangers can take of the bootstrap service is bounded, while others register and resolve."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator

import attrs
import msgspec
import pytest
from pair import until

from pdcore.bootstrap import BootstrapClient, BootstrapServer, RankRecord, ReplicaQuery, RoomsRecord
from pdcore.bootstrap.auth import Challenges
from pdcore.bootstrap.client import ROOMS_AT_ONCE
from pdcore.bootstrap.http.limits import Limits
from pdcore.errors import BootstrapError
from pdcore.model import Deadline, Incarnation, RoomId
from pdcore.pairing.topology import DPChoice, Topology

KEY = "a secret of sixteen bytes or more"
RECORD = RankRecord(Incarnation("a" * 32), "10.0.0.1:5", Topology(), 60.0)
FEW = Limits(connections=8, waiting=4, ranks=4)
HEAD = b"PUT /v1/ranks HTTP/1.1\r\nHost: a\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


class OwnClock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def soon() -> Deadline:
    return Deadline.after(60)


@pytest.fixture
def clock() -> OwnClock:
    return OwnClock()


@pytest.fixture
def client() -> Iterator[BootstrapClient]:
    one = BootstrapClient("test")
    yield one
    one.close(soon())


@contextlib.contextmanager
def strangers(server: BootstrapServer) -> Iterator[Callable[[bytes], socket.socket]]:
    """Yields what connects and says something."""
    host, _, port = server.address.rpartition(":")
    with contextlib.ExitStack() as stack:

        def say(words: bytes) -> socket.socket:
            one = stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            with contextlib.suppress(ConnectionError):
                one.sendall(words)
            return one

        yield say


def rest(stranger: socket.socket) -> bytes:
    """Return all that the service still says until it hangs up."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while data := stranger.recv(65_536):
            said += data
    return said


def hung_up(stranger: socket.socket) -> bool:
    """Whether the service has hung up on it; what it said is thrown away."""
    stranger.setblocking(False)
    try:
        while stranger.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def parts(said: bytes, status: int) -> dict[str, str]:
    """Return the three parts of a refusal."""
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), said[:200]
    refusal: dict[str, str] = json.loads(body)
    assert set(refusal) == {"happened", "there_is", "to_do"}
    return refusal


def works(server: BootstrapServer, client: BootstrapClient) -> None:
    """A rank can register, and decode can resolve it."""
    client.register(server.address, RECORD, soon())
    assert client.resolve(server.address, ReplicaQuery(0, RoomId(0)), soon()).result(60).ranks == (RECORD,)


def test_the_figures_are_bounded() -> None:
    limits = Limits()
    assert limits.arriving_bytes == 16 * 2**20
    assert (limits.connections, limits.waiting) == (1024, 512)
    assert (limits.header_bytes, limits.headers, limits.body_bytes) == (8192, 64, 65_536)
    assert (limits.request_seconds, limits.idle_seconds, limits.answer_seconds) == (10, 60, 70)
    assert (limits.ranks, limits.rooms) == (16_384, 262_144)


@pytest.mark.parametrize(
    ("soft", "held"), [(256, 128), (10**6, 1024), (resource.RLIM_INFINITY, 1024), (1, 1)]
)
def test_no_more_connections_are_held_than_half_the_descriptors(
    soft: int, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert Limits().held == held


@pytest.mark.parametrize("key", [None, KEY], ids=["open", "keyed"])
@pytest.mark.parametrize("words", [b"", HEAD, HEAD + b"Content-Length: 500\r\n\r\n{", HEALTH], ids=range(4))
def test_connections_of_strangers_make_room_for_others(words: bytes, key: str | None) -> None:
    with BootstrapServer(auth_key=key, limits=FEW) as server, strangers(server) as connect:
        client = BootstrapClient("keyed", server._access._key)
        try:
            held = [connect(words) for _ in range(20)]
            works(server, client)
            held += [connect(words) for _ in range(20)]
            works(server, client)
            until(lambda: server.counts["crowded"] >= 40 - FEW.connections)
            until(lambda: sum(not hung_up(one) for one in held) <= FEW.connections)
        finally:
            client.close(soon())


def test_requests_that_are_not_there_in_full_make_room_for_others(client: BootstrapClient) -> None:
    limits = Limits(arriving_bytes=200_000)
    words = HEAD + b"Content-Length: 65536\r\n\r\n" + b" " * 60_000
    with BootstrapServer(limits=limits) as server, strangers(server) as connect:
        for _ in range(10):
            connect(words)
            works(server, client)
        until(lambda: server.counts["crowded"] == 7)
        assert 0 < server._connections._arriving <= limits.arriving_bytes
    assert server._connections._arriving == 0


def test_lookups_that_wait_make_room_for_others(client: BootstrapClient) -> None:
    wait = b"GET /v1/ranks?dp_rank=7&wait=60 HTTP/1.1\r\nHost: a\r\n\r\n"
    with BootstrapServer(limits=FEW) as server, strangers(server) as connect:
        waiting = client.resolve(server.address, ReplicaQuery(0, RoomId(0)), soon())
        until(lambda: len(server._waiting) == 1)
        held = [connect(wait) for _ in range(6)]  # two more than may wait, and the client asks again
        refused = parts(held[0].recv(65_536), 503)
        assert refused["happened"] == "more look-ups wait than may"
        client.register(server.address, RECORD, soon())
        assert waiting.result(60).ranks == (RECORD,)
        assert len(server._waiting) <= FEW.waiting
        assert len(server._connections._by_inner) <= FEW.connections


def test_a_crowd_of_lookups_is_told_as_such(client: BootstrapClient) -> None:
    with BootstrapServer(limits=attrs.evolve(FEW, waiting=1)) as server, strangers(server) as connect:
        waiting = client.resolve(server.address, ReplicaQuery(0, RoomId(0)), Deadline.after(1))
        while not waiting.done():
            connect(b"GET /v1/ranks?dp_rank=7&wait=60 HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(0.02)
        with pytest.raises(BootstrapError) as caught:
            waiting.result()
    assert "1 wait, and this one has waited for the longest time" in caught.value.there_is


@pytest.mark.parametrize(
    ("words", "trickle"),
    [
        (b"", b""),
        (b"P", b"U"),
        (HEAD, b"X"),
        (HEAD + b"Content-Length: 500\r\n\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nff\r\nab", b" "),
    ],
    ids=["nothing", "letter", "header", "body", "chunk"],
)
def test_a_request_that_takes_too_long_is_ended_however_it_trickles(
    words: bytes, trickle: bytes, clock: OwnClock, client: BootstrapClient
) -> None:
    with BootstrapServer(clock=clock) as server, strangers(server) as connect:
        works(server, client)
        slow = connect(words)
        until(lambda: len(server._connections._by_inner) == 2)
        for _ in range(1 if words == b"P" else 4):
            clock.now += 2.0
            slow.sendall(trickle)
        clock.now += 8.5
        refused = parts(rest(slow), 408)
        assert refused["happened"] == "a request takes too long"
        assert refused["there_is"] == "it is not there 10 s after it began"
        assert server.counts["slow"] == 1
        works(server, client)


def test_a_connection_between_two_requests_is_ended_after_a_while(clock: OwnClock) -> None:
    with BootstrapServer(clock=clock) as server, strangers(server) as connect:
        resting = connect(HEALTH)
        assert b"503 Service Unavailable" in resting.recv(65_536)
        clock.now += 59
        resting.sendall(HEALTH)
        assert b"503 Service Unavailable" in resting.recv(65_536)
        clock.now += 61
        assert rest(resting) == b""


def test_who_does_not_read_the_answers_is_ended(clock: OwnClock) -> None:
    size = 1500
    with BootstrapServer(clock=clock) as server, strangers(server) as connect:
        for number in range(size):
            life, topology = Incarnation(f"{number:032x}"), Topology(tp_size=size, tp_rank=number)
            server._ranks.put(attrs.evolve(RECORD, topology=topology, incarnation=life))
        deaf = connect(b"")
        connections = server._connections._by_inner
        until(lambda: len(connections) == 1)
        (connection,) = connections.values()
        while connection.stuck_since is None:  # half a megabyte each
            deaf.sendall(b"GET /v1/ranks HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(0.01)
        clock.now += 11
        until(lambda: not connections)
        assert server.counts["slow"] == 1


@pytest.mark.parametrize(
    ("words", "statuses"),
    [
        (HEAD + b"X-A: b\r\n" * 65 + b"\r\n", (400, 431)),
        (HEAD + b"X-A: " + b"b" * 9000 + b"\r\n\r\n", (400, 431)),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", (400, 414)),
        (HEAD + b"Content-Length: 65537\r\n\r\n" + b"a" * 65_537, (413,)),
        (HEAD + b"Content-Length: 999999999\r\n\r\n" + b"a" * 300_000, (413,)),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"4000\r\n" + b"a" * 0x4000 + b"\r\n", (413,)),
        (b"\0" * 300_000, (400, 413)),
    ],
    ids=["headers", "header", "path", "body", "long body", "endless body", "noise"],
)
def test_what_is_too_much_for_a_request_is_refused_and_not_held(
    words: bytes, statuses: tuple[int, ...], client: BootstrapClient
) -> None:
    endless = words[-0x4008:] if b"chunked" in words else b""
    with BootstrapServer() as server, strangers(server) as connect:
        one = connect(words)
        with contextlib.suppress(ConnectionError):
            while endless and not server.counts["oversized"]:
                one.sendall(endless)
            said = one.recv(65_536)
            assert not said or int(said.split()[1]) in statuses
        works(server, client)


def test_requests_without_waiting_for_the_answers_do_not_pile_up(client: BootstrapClient) -> None:
    wait = b"GET /v1/ranks?dp_rank=7&wait=60 HTTP/1.1\r\nHost: a\r\n\r\n"
    with BootstrapServer() as server, strangers(server) as connect:
        hasty = connect(wait)
        until(lambda: len(server._waiting) == 1)
        (connection,) = server._connections._by_inner.values()
        with contextlib.suppress(ConnectionError):
            hasty.sendall(HEALTH * 10_000)
        works(server, client)
        # Either the rest is not read before the first is answered, or the connection is ended.
        until(lambda: connection.received <= Limits().request_bytes or server.counts["oversized"] == 1)


def test_ranks_are_bounded_and_those_that_do_not_renew_make_room(
    clock: OwnClock, client: BootstrapClient
) -> None:
    def rank(number: int) -> RankRecord:
        topology = Topology(dp_size=64, dp_rank=number)
        return attrs.evolve(RECORD, topology=topology, incarnation=Incarnation(f"{number:032x}"))

    with BootstrapServer(clock=clock, limits=FEW) as server:
        for number in range(4):
            client.register(server.address, rank(number), soon())
        with pytest.raises(BootstrapError, match="too many ranks are registered") as caught:
            client.register(server.address, rank(4), soon())
        assert caught.value.there_is == "4"
        client.register(server.address, rank(3), soon())  # who is there renews
        clock.now += 61
        client.register(server.address, rank(3), soon())
        client.register(server.address, rank(5), soon())
        found = client.resolve(server.address, ReplicaQuery(5, RoomId(0)), soon())
        assert found.result(60).ranks == (rank(5),)


@pytest.mark.parametrize("incarnation", ["", "a" * 65, "a b", "é", "x" * 60_000])
def test_an_incarnation_is_a_short_name(incarnation: str) -> None:
    body = msgspec.to_builtins(RECORD) | {"incarnation": incarnation}
    with BootstrapServer() as server, strangers(server) as connect:
        text = json.dumps(body).encode()
        one = connect(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
        assert "an incarnation is no name" in parts(rest(one), 400)["there_is"]


def test_many_rooms_are_told_in_parts(client: BootstrapClient) -> None:
    rooms = tuple(RoomId(n + 10**18) for n in range(ROOMS_AT_ONCE * 4 + 1))
    with BootstrapServer(limits=Limits(rooms=ROOMS_AT_ONCE * 3)) as server:
        client.register(server.address, RECORD, soon())
        client.register_rooms(server.address, RoomsRecord(rooms, 0), 60)
        last = ReplicaQuery(DPChoice.QUERY, rooms[-1])
        assert client.resolve(server.address, last, soon()).result(60).ranks == (RECORD,)
        assert len(server._rooms._ranks) == ROOMS_AT_ONCE * 3


def test_challenges_that_do_not_come_back_take_no_memory(clock: OwnClock) -> None:
    challenges = Challenges(clock)
    made = [challenges.make() for _ in range(1000)]
    assert not challenges._spent
    assert not challenges.spend("00" * 56)
    assert all(map(challenges.spend, made))
    clock.now += 61
    assert challenges.spend(challenges.make())
    assert len(challenges._spent) == 1
