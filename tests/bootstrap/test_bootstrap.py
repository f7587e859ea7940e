from __future__ import annotations

import asyncio
import gc
import http.client
import http.server
import json
import logging
import logging.handlers
import queue
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import aiohttp
import attrs
import msgspec
import pytest

from pdcore.bootstrap import BootstrapClient, BootstrapServer, RankRecord, ReplicaQuery, RoomsRecord
from pdcore.bootstrap.attempts import MAX_ADDRESSES, Attempts
from pdcore.bootstrap.record import Traits
from pdcore.bootstrap.rooms import ROOM_SECONDS, RoomRanks
from pdcore.errors import BootstrapError
from pdcore.layout.fingerprint import Fingerprint
from pdcore.model import Deadline, Incarnation, RoomId
from pdcore.pairing.topology import DPChoice, Topology

LEASE = 10.0
RECORD = RankRecord(Incarnation("a" * 32), "10.0.0.1:5", Topology(), LEASE)


class OwnClock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def soon() -> Deadline:
    return Deadline.after(30)


def brief() -> Deadline:
    return Deadline.after(0.3)


def rank(tp_rank: int, tp_size: int = 2, **changes: Any) -> RankRecord:
    return attrs.evolve(
        RECORD,
        incarnation=Incarnation(f"{tp_rank:032x}"),
        address=f"10.0.0.1:{tp_rank + 1}",
        topology=Topology(tp_size=tp_size, tp_rank=tp_rank, **changes),
    )


def replica(choice: int | DPChoice, room: int = 0) -> ReplicaQuery:
    return ReplicaQuery(choice, RoomId(room))


@pytest.fixture
def clock() -> OwnClock:
    return OwnClock()


@pytest.fixture
def server(clock: OwnClock) -> Iterator[BootstrapServer]:
    with BootstrapServer(clock=clock) as running:
        yield running


@pytest.fixture
def client() -> Iterator[BootstrapClient]:
    one = BootstrapClient("test")
    yield one
    one.close(soon())


def ask(address: str, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
    """Return the status and the JSON of one plain HTTP request."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        raw = response.read()
        return response.status, json.loads(raw) if raw else None
    finally:
        connection.close()


def health(server: BootstrapServer) -> tuple[int, Any]:
    return ask(server.address, "GET", "/health")


def resolved(client: BootstrapClient, server: BootstrapServer, dp_rank: int = 0) -> tuple[RankRecord, ...]:
    return client.resolve(server.address, replica(dp_rank), soon()).result(60).ranks


def refusal(client: BootstrapClient, address: str, dp_rank: int = 0) -> BootstrapError:
    with pytest.raises(BootstrapError) as caught:
        client.resolve(address, replica(dp_rank), brief()).result(60)
    return caught.value


# Registering and resolving


def test_a_registered_rank_is_resolved_as_it_is(server: BootstrapServer, client: BootstrapClient) -> None:
    client.register(server.address, RECORD, soon())
    assert resolved(client, server) == (RECORD,)


def test_registering_again_changes_nothing(server: BootstrapServer, client: BootstrapClient) -> None:
    for _ in range(3):
        client.register(server.address, RECORD, soon())
    assert resolved(client, server) == (RECORD,)
    assert health(server) == (200, {"healthy": True, "ranks": 1, "stale": []})


def test_a_new_incarnation_replaces_the_old_one(server: BootstrapServer, client: BootstrapClient) -> None:
    new = attrs.evolve(RECORD, incarnation=Incarnation("b" * 32), address="10.0.0.1:6")
    for record in (RECORD, new):
        client.register(server.address, record, soon())
    assert resolved(client, server) == (new,)
    client.withdraw(server.address, RECORD.incarnation, soon())
    assert resolved(client, server) == (new,)


def test_a_replaced_incarnation_cannot_take_its_rank_back(
    server: BootstrapServer, client: BootstrapClient
) -> None:
    new = attrs.evolve(RECORD, incarnation=Incarnation("b" * 32), address="10.0.0.1:6")
    for record in (RECORD, new):
        client.register(server.address, record, soon())
    with pytest.raises(BootstrapError) as caught:
        client.register(server.address, RECORD, soon())
    assert f"incarnation {RECORD.incarnation[:8]} was replaced by a newer one" in caught.value.happened
    assert caught.value.there_is == "10.0.0.1:6 is registered now"
    assert resolved(client, server) == (new,)


def test_a_withdrawn_rank_is_gone(server: BootstrapServer, client: BootstrapClient) -> None:
    client.register(server.address, RECORD, soon())
    client.withdraw(server.address, RECORD.incarnation, soon())
    client.withdraw(server.address, RECORD.incarnation, soon())
    assert health(server) == (503, {"healthy": False, "ranks": 0, "stale": []})
    assert "not registered in full" in refusal(client, server.address).happened


def test_resolving_waits_until_the_last_rank_is_there(
    server: BootstrapServer, client: BootstrapClient
) -> None:
    group = client.resolve(server.address, replica(0), soon())
    client.register(server.address, rank(1), soon())
    assert not group.done()
    client.register(server.address, rank(0), soon())
    assert group.result(60).ranks == (rank(0), rank(1))


def test_resolving_waits_for_a_service_that_is_not_up_yet(client: BootstrapClient) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    group = client.resolve(f"127.0.0.1:{port}", replica(0), soon())
    with BootstrapServer(port=port) as server:
        client.register(server.address, RECORD, soon())
        assert group.result(60).ranks == (RECORD,)


def test_replicas_are_resolved_by_their_dp_rank(server: BootstrapServer, client: BootstrapClient) -> None:
    replicas = [
        attrs.evolve(RECORD, address=f"10.0.0.1:{dp + 1}", topology=Topology(dp_size=3, dp_rank=dp))
        for dp in range(3)
    ]
    for record in replicas:
        client.register(server.address, record, soon())
    for dp in range(3):
        assert resolved(client, server, dp) == (replicas[dp],)


def test_a_group_that_stays_incomplete_says_what_is_there(
    server: BootstrapServer, client: BootstrapClient
) -> None:
    for tp_rank in (3, 0):
        client.register(server.address, rank(tp_rank, 4), soon())
    client.register(server.address, rank(0, 1, dp_size=8, dp_rank=7), soon())
    error = refusal(client, server.address)
    assert error.happened == (
        f"prefill DP rank 0 is not registered in full (bootstrap service {server.address})"
    )
    assert error.there_is == "unique ranks [0, 3] of DP rank 0, DP ranks [0, 7]"
    assert error.to_do == "start the missing prefill ranks, or ask for a DP rank that runs"
    assert refusal(client, server.address, 5).there_is == "unique ranks [] of DP rank 5, DP ranks [0, 7]"


def test_a_group_of_absurd_size_is_incomplete(server: BootstrapServer, client: BootstrapClient) -> None:
    client.register(server.address, rank(0, 10**15), soon())
    assert refusal(client, server.address).there_is == "unique ranks [0] of DP rank 0, DP ranks [0]"


def test_many_resolve_at_once_while_one_waits(server: BootstrapServer, client: BootstrapClient) -> None:
    client.register(server.address, RECORD, soon())
    waiting = client.resolve(server.address, replica(1), soon())
    groups = [client.resolve(server.address, replica(0), soon()) for _ in range(50)]
    assert {group.result(60).ranks for group in groups} == {(RECORD,)}
    assert not waiting.done()
    late = attrs.evolve(RECORD, topology=Topology(dp_size=2, dp_rank=1))
    client.register(server.address, late, soon())
    assert waiting.result(60).ranks == (late,)


# Leases and health


def test_health_is_red_without_ranks(server: BootstrapServer) -> None:
    assert health(server) == (503, {"healthy": False, "ranks": 0, "stale": []})


def test_a_rank_that_does_not_renew_is_stale_and_later_forgotten(
    server: BootstrapServer, client: BootstrapClient, clock: OwnClock
) -> None:
    client.register(server.address, RECORD, soon())
    clock.now += LEASE
    assert health(server) == (200, {"healthy": True, "ranks": 1, "stale": []})
    clock.now += 0.5
    assert health(server) == (503, {"healthy": False, "ranks": 0, "stale": ["10.0.0.1:5"]})
    assert refusal(client, server.address).there_is == "unique ranks [] of DP rank 0, DP ranks []"
    clock.now += 10 * LEASE
    assert health(server) == (503, {"healthy": False, "ranks": 0, "stale": []})


def test_one_stale_rank_among_healthy_ones_turns_health_red(
    server: BootstrapServer, client: BootstrapClient, clock: OwnClock
) -> None:
    client.register(server.address, rank(0), soon())
    clock.now += LEASE
    client.register(server.address, rank(1), soon())
    clock.now += LEASE
    assert health(server) == (503, {"healthy": False, "ranks": 1, "stale": ["10.0.0.1:1"]})


def test_a_renewed_lease_wakes_who_waits_for_the_rank(
    server: BootstrapServer, client: BootstrapClient, clock: OwnClock
) -> None:
    client.register(server.address, RECORD, soon())
    clock.now += 2 * LEASE
    group = client.resolve(server.address, replica(0), soon())
    client.renew(server.address, RECORD, lambda _: None)
    assert group.result(60).ranks == (RECORD,)
    assert health(server) == (200, {"healthy": True, "ranks": 1, "stale": []})


# What goes wrong at the service


def record_json(**changes: object) -> bytes:
    return msgspec.json.encode(msgspec.to_builtins(RECORD) | changes)


@pytest.mark.parametrize(
    ("body", "there_is"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `incarnation`"),
        (record_json(address=5), "Expected `str`, got `int` - at `$.address`"),
        (record_json(lease=None), "got `null` - at `$.lease`"),
        (record_json(topology={"tp_size": 2, "tp_rank": 2}), "tp_size is 2"),
        (b"[" * 60_000, ""),
    ],
)
def test_a_malformed_registration_is_refused_in_three_parts(
    server: BootstrapServer, body: bytes, there_is: str
) -> None:
    status, refused = ask(server.address, "PUT", "/v1/ranks", body)
    assert status == 400
    assert refused["happened"] == "a rank registration is malformed"
    assert there_is in refused["there_is"]
    assert refused["to_do"] == "send a RankRecord as JSON"
    assert health(server)[1]["ranks"] == 0


def test_a_registration_that_is_too_long_is_refused_in_three_parts(server: BootstrapServer) -> None:
    status, refused = ask(server.address, "PUT", "/v1/ranks", record_json(address="x" * 70_000))
    assert status == 413
    assert refused == {
        "happened": "a request is too long",
        "there_is": "the limit is 65536 bytes",
        "to_do": "send less at once, one request at a time, and each in one go",
    }


@pytest.mark.parametrize("lease", [0.0, -1.0, 3601.0])
def test_a_lease_out_of_range_is_refused(
    server: BootstrapServer, client: BootstrapClient, lease: float
) -> None:
    with pytest.raises(BootstrapError) as caught:
        client.register(server.address, attrs.evolve(RECORD, lease=lease), soon())
    assert caught.value.happened == f"a lease is out of range (bootstrap service {server.address})"
    assert caught.value.there_is == f"{lease} s"
    assert caught.value.to_do == "use 0 < lease <= 3600 s"


@pytest.mark.parametrize(
    "query", ["dp_rank=x", "dp_rank=", "dp_rank=1.5", "wait=long", f"dp_rank={'9' * 5000}"]
)
def test_a_malformed_query_is_refused_in_three_parts(server: BootstrapServer, query: str) -> None:
    status, refused = ask(server.address, "GET", f"/v1/ranks?{query}")
    assert status == 400
    assert refused["happened"] == "a rank query is malformed"
    assert refused["there_is"]
    assert refused["to_do"].startswith("send dp_rank=INT&wait=SECONDS, or room=INT")


@pytest.mark.parametrize("query", ["", "?wait=nan", "?wait=-5", "?dp_rank=-1"])
def test_a_query_that_need_not_wait_is_answered_now(server: BootstrapServer, query: str) -> None:
    status, refused = ask(server.address, "GET", f"/v1/ranks{query}")
    assert status == 404
    assert "is not registered in full" in refused["happened"]


def test_any_rank_is_told_of_as_soon_as_there_is_one(
    server: BootstrapServer, client: BootstrapClient
) -> None:
    waiting = client.any_rank(server.address, 30.0, soon())
    while not len(server._waiting):
        threading.Event().wait(0.01)
    client.register(server.address, RECORD, soon())
    assert waiting.result(30) == RECORD
    assert client.any_rank(server.address, 0.0, soon()).result(30) == RECORD


@pytest.mark.parametrize("query", ["", "?wait=nan", "?wait=-5", "?wait=0"])
def test_a_query_for_any_rank_that_need_not_wait_is_answered_now(server: BootstrapServer, query: str) -> None:
    status, refused = ask(server.address, "GET", f"/v1/ranks/any{query}")
    assert status == 404
    assert refused == {
        "happened": "no prefill rank is registered",
        "there_is": "none of which the lease holds",
        "to_do": "start prefill, or ask the service that it registers with",
    }


def test_a_malformed_query_for_any_rank_is_refused(server: BootstrapServer) -> None:
    status, refused = ask(server.address, "GET", "/v1/ranks/any?wait=long")
    assert (status, refused["happened"]) == (400, "a query for any rank is malformed")
    assert refused["to_do"] == "send wait=SECONDS"


def test_what_a_rank_says_of_itself_is_optional_json(
    server: BootstrapServer, client: BootstrapClient
) -> None:
    traits = Traits("local", "shm", "0.1.0", "7", 16, "bfloat16", Fingerprint({"model": "a"}))
    told = json.loads(msgspec.json.encode(attrs.evolve(RECORD, traits=traits)))
    assert told["traits"] == {
        "backend": "local",
        "protocol": "shm",
        "version": "0.1.0",
        "engine_version": "7",
        "page_size": 16,
        "dtype": "bfloat16",
        "fingerprint": {"fields": [["model", "a"]]},
    }
    del told["traits"]
    assert ask(server.address, "PUT", "/v1/ranks", json.dumps(told).encode())[0] == 204
    assert resolved(client, server) == (RECORD,)


def test_a_port_in_use_is_a_clear_error(server: BootstrapServer) -> None:
    port = int(server.address.rpartition(":")[2])
    with pytest.raises(BootstrapError) as caught:
        BootstrapServer(port=port).start()
    assert caught.value.happened == f"the bootstrap service cannot listen on 127.0.0.1:{port}"
    assert caught.value.there_is.startswith("Address already in use")
    assert caught.value.to_do == "choose a free port (0 takes any) and an address of this machine"


# What goes wrong at the client


@pytest.fixture
def nobody() -> str:
    """An address where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{unused.getsockname()[1]}"


@pytest.fixture
def mute() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


class WebSite(http.server.BaseHTTPRequestHandler):
    """Something else that speaks HTTP."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = b"<html>welcome</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_PUT = do_DELETE = _answer  # noqa: N815  # the names are http.server's

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@pytest.fixture
def website() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), WebSite) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield f"127.0.0.1:{site.server_port}"
        site.shutdown()
        thread.join(30)


@pytest.fixture
def logged() -> Iterator[queue.SimpleQueue[logging.LogRecord]]:
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    handler, logger = logging.handlers.QueueHandler(records), logging.getLogger("pdcore.bootstrap")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_service_that_is_not_there_is_named_with_how_often_and_why(
    client: BootstrapClient, nobody: str
) -> None:
    with pytest.raises(BootstrapError) as caught:
        client.register(nobody, RECORD, brief())
    for error in (caught.value, refusal(client, nobody)):
        assert error.happened == f"the bootstrap service at {nobody} cannot be reached"
        assert re.fullmatch(r"asked \d+ times? in [\d.]+ s: Connection refused", error.there_is)
        assert error.to_do == "check the address and that the prefill side's bootstrap service runs"
    assert client.trouble(nobody).startswith("asked ")
    host, _, port = nobody.rpartition(":")
    with BootstrapServer(host, int(port)):  # one that is reached again is told of no more
        client.register(nobody, RECORD, soon())
    assert client.trouble(nobody) == ""


def test_a_service_whose_name_is_not_known_is_named(client: BootstrapClient) -> None:
    error = refusal(client, "prefill.invalid:8998")
    assert error.happened == "the bootstrap service at prefill.invalid:8998 cannot be reached"
    assert re.match(r"asked \d+ times? in [\d.]+ s: .", error.there_is)


def test_a_rank_whose_name_is_not_known_here_is_named(
    server: BootstrapServer, client: BootstrapClient
) -> None:
    client.register(server.address, attrs.evolve(RECORD, address="prefill.invalid:5"), soon())
    error = refusal(client, server.address)
    assert error.happened == (
        "prefill rank 0 is registered as prefill.invalid:5, which does not resolve here"
    )
    assert error.to_do.startswith("let prefill advertise what decode can dial (PDCORE_ADVERTISE)")


@pytest.mark.parametrize(
    ("families", "dialled"), [("46", "node-7:5"), ("4", "node-7:5"), ("6", "[fd00::2]:5")]
)
def test_a_name_without_an_ipv4_address_is_dialled_by_its_other(
    families: str,
    dialled: str,
    server: BootstrapServer,
    client: BootstrapClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **kwargs: Any) -> Any:
        given = {"4": "10.0.0.2", "6": "fd00::2"}
        return (
            [real(given[family], 5, type=socket.SOCK_STREAM)[0] for family in families]
            if host == "node-7"
            else real(host, *args, **kwargs)
        )

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    client.register(server.address, attrs.evolve(RECORD, address="node-7:5"), soon())
    assert resolved(client, server) == (attrs.evolve(RECORD, address=dialled),)


def test_failed_attempts_are_counted_by_address_and_reason(clock: OwnClock) -> None:
    attempts = Attempts(clock)
    assert (attempts.told("a:1"), attempts.count("a:1")) == ("", 0)
    refusals = [ConnectionRefusedError(111, "Connect call failed")] * 3
    for error in (*refusals, OSError(113, "x"), asyncio.TimeoutError()):
        clock.now += 1
        attempts.failed("a:1", error, 0.5)
    attempts.failed("b:1", aiohttp.ServerDisconnectedError(), 3)
    refused, others = "Connection refused (3)", "No route to host (1); no answer within the deadline (1)"
    assert attempts.told("a:1") == f"asked 5 times in 4.5 s: {refused}; {others}"
    assert attempts.told("b:1") == "asked 1 time in 3.0 s: Server disconnected"
    attempts.succeeded("a:1")
    assert (attempts.count("a:1"), attempts.count("b:1")) == (0, 1)
    clock.now += 3  # who asks again after a while begins to count anew, but not who had to wait so long
    attempts.failed("b:1", asyncio.TimeoutError(), 2)
    assert attempts.count("b:1") == 2
    clock.now += 3
    attempts.failed("b:1", asyncio.TimeoutError(), 0.5)
    assert attempts.told("b:1") == "asked 1 time in 0.5 s: no answer within the deadline"
    for n in range(MAX_ADDRESSES):
        attempts.failed(f"c:{n}", OSError("odd"), 0)
    assert attempts.count("b:1") == 0
    assert attempts.told("c:1") == "asked 1 time in 0.0 s: odd"


def test_a_service_that_never_answers_is_given_up_at_the_deadline(client: BootstrapClient, mute: str) -> None:
    with pytest.raises(BootstrapError) as caught:
        client.register(mute, RECORD, brief())
    for error in (caught.value, refusal(client, mute)):
        assert error.happened == f"the bootstrap service at {mute} cannot be reached"
        assert error.there_is.endswith("no answer within the deadline")


def test_something_else_that_answers_is_not_taken_for_the_service(
    client: BootstrapClient, website: str
) -> None:
    with pytest.raises(BootstrapError) as caught:
        client.register(website, RECORD, soon())
    for error in (caught.value, refusal(client, website)):
        assert error.happened == f"the bootstrap service answered strangely (bootstrap service {website})"
        assert error.there_is == "HTTP 200, b'<html>welcome</html>'"
        assert error.to_do == "check that the address is a pdcore bootstrap service"


def renewed(client: BootstrapClient, address: str, record: RankRecord) -> Exception | None:
    """Return what came of a renewal: the one before may be about to end."""
    heard: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    while heard.empty():
        client.renew(address, record, heard.put)
        threading.Event().wait(0.01)
    return heard.get()


def test_a_renewal_tells_what_came_of_it(
    client: BootstrapClient, server: BootstrapServer, nobody: str
) -> None:
    assert isinstance(renewed(client, nobody, RECORD), aiohttp.ClientConnectorError)
    assert renewed(client, server.address, RECORD) is None
    refused = renewed(client, server.address, attrs.evolve(RECORD, lease=4000.0))
    assert isinstance(refused, BootstrapError)
    assert "a lease is out of range" in refused.happened


def test_one_renewal_is_under_way_at_a_time(client: BootstrapClient, mute: str) -> None:
    heard: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    short = attrs.evolve(RECORD, lease=0.2)
    for _ in range(20):
        client.renew(mute, short, heard.put)
    assert isinstance(heard.get(timeout=30), asyncio.TimeoutError)
    assert heard.empty()


def test_a_withdrawal_that_fails_is_logged(
    client: BootstrapClient, nobody: str, mute: str, logged: queue.SimpleQueue[logging.LogRecord]
) -> None:
    for address in (nobody, mute):
        client.withdraw(address, RECORD.incarnation, brief())
        assert (
            f"could not withdraw from the bootstrap service at {address}"
            in logged.get(timeout=30).getMessage()
        )


# The end


def threads() -> set[str]:
    return {t.name for t in threading.enumerate() if t.name in ("pdcore-bootstrap-server", "pdcore-a-http")}


def test_nothing_is_left_behind() -> None:
    client = BootstrapClient("a")
    server = BootstrapServer()
    server.start()
    client.register(server.address, RECORD, soon())
    assert threads() == {"pdcore-bootstrap-server", "pdcore-a-http"}
    address = server.address
    for _ in range(2):
        client.close(soon())
        server.close()
    assert threads() == set()
    with pytest.raises(ConnectionRefusedError):
        ask(address, "GET", "/health")


def test_a_failed_start_leaves_nothing_behind(server: BootstrapServer) -> None:
    with pytest.raises(BootstrapError):
        BootstrapServer(port=int(server.address.rpartition(":")[2])).start()
    assert [t.name for t in threading.enumerate()].count("pdcore-bootstrap-server") == 1


def test_a_service_can_be_started_again_at_its_place(client: BootstrapClient) -> None:
    server = BootstrapServer()
    server.start()
    address = server.address
    client.register(address, RECORD, soon())
    server.close()
    with server:
        assert server.address == address
        client.register(address, RECORD, soon())
        assert resolved(client, server) == (RECORD,)


def test_closing_ends_lookups_that_wait(server: BootstrapServer) -> None:
    client = BootstrapClient("a")
    waiting = client.resolve(server.address, replica(0), soon())
    client.close(soon())
    with pytest.raises(CancelledError):
        waiting.result(60)


def test_the_service_closes_although_somebody_waits(client: BootstrapClient) -> None:
    with BootstrapServer() as server:
        waiting = client.resolve(server.address, replica(0), soon())
        client.register(server.address, rank(0), soon())
    assert threads() == set()
    assert not waiting.done()


def test_connections_that_come_while_the_service_closes_are_closed_too() -> None:
    # asyncio would lose some of them, and the garbage collector warn of it: warnings are errors here.
    for _ in range(30):
        with ThreadPoolExecutor(1) as connecting, BootstrapServer() as server:
            host, _, port = server.address.rpartition(":")
            attempts = [connecting.submit(socket.create_connection, (host, int(port)), 30) for _ in range(5)]
        for attempt in attempts:
            if attempt.exception() is None:
                with attempt.result() as connection:
                    assert meets_itself(connection) or closed_by_the_other_side(connection)
    gc.collect()


def meets_itself(connection: socket.socket) -> bool:
    """Whether it was made from and to one port, which had become free again."""
    try:
        return bool(connection.getsockname() == connection.getpeername())
    except OSError:  # it is reset already
        return False


def closed_by_the_other_side(connection: socket.socket) -> bool:
    try:
        # Linux may drop a handshake's last packet as the listener closes: only a byte sent tells.
        connection.sendall(b"G")
        return connection.recv(1) == b""
    except (ConnectionResetError, BrokenPipeError):
        return True


# DP ranks of rooms


def test_the_dp_rank_of_a_room_is_its_remainder(server: BootstrapServer, client: BootstrapClient) -> None:
    for dp_rank in range(3):
        client.register(server.address, rank(0, 1, dp_size=3, dp_rank=dp_rank), soon())
    for room in (3, 7, 11):
        found = client.resolve(server.address, replica(DPChoice.BY_ROOM, room), soon()).result(60)
        assert [record.topology.dp_rank for record in found.ranks] == [room % 3]


def test_a_room_is_found_where_prefill_registered_it(
    server: BootstrapServer, client: BootstrapClient
) -> None:
    for dp_rank in range(2):
        client.register(server.address, rank(0, 1, dp_size=2, dp_rank=dp_rank), soon())
    waiting = client.resolve(server.address, replica(DPChoice.QUERY, 4), soon())
    client.register_rooms(server.address, RoomsRecord((RoomId(4), RoomId(5)), 1), 10)
    assert [record.topology.dp_rank for record in waiting.result(60).ranks] == [1]
    client.register_rooms(server.address, RoomsRecord((RoomId(6),), 0), 10)
    found = client.resolve(server.address, replica(DPChoice.QUERY, 6), soon()).result(60)
    assert [record.topology.dp_rank for record in found.ranks] == [0]


def test_a_room_that_nobody_took_is_named(server: BootstrapServer, client: BootstrapClient) -> None:
    client.register(server.address, rank(0, 1), soon())
    with pytest.raises(BootstrapError, match="nobody took room 9") as caught:
        client.resolve(server.address, replica(DPChoice.QUERY, 9), brief()).result(60)
    assert caught.value.there_is == "DP ranks [0] are registered"
    assert caught.value.to_do == "have prefill call register_dp_rank(room), or start it"


def test_rooms_are_forgotten_after_a_while_and_the_last_word_counts(clock: OwnClock) -> None:
    table = RoomRanks(clock, most=2)
    table.register((RoomId(1), RoomId(2)), 0)
    table.register((RoomId(2),), 1)
    assert (table.of(RoomId(1)), table.of(RoomId(2)), table.of(RoomId(3))) == (0, 1, None)
    clock.now += ROOM_SECONDS + 1
    assert table.of(RoomId(1)) is None
    for room in (4, 5, 6):
        table.register((RoomId(room),), 0)
    assert [room for room in range(8) if table.of(RoomId(room)) is not None] == [5, 6]


@pytest.mark.parametrize(
    ("path", "happened"),
    [
        ("/v1/ranks?choice=sometimes&room=1", "a rank query is malformed"),
        ("/v1/ranks?choice=query&room=one", "a rank query is malformed"),
    ],
)
def test_a_strange_choice_of_the_dp_rank_is_refused(
    server: BootstrapServer, path: str, happened: str
) -> None:
    host, _, port = server.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = json.loads(answer.read())
    connection.close()
    assert (answer.status, body["happened"]) == (400, happened)
    assert body["to_do"].endswith("or room=INT&choice=by_room|query&wait=SECONDS")


@pytest.mark.parametrize("body", [b"{}", b'{"rooms": ["x"], "dp_rank": 0}', b"no"])
def test_a_malformed_registration_of_rooms_is_refused(server: BootstrapServer, body: bytes) -> None:
    host, _, port = server.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("PUT", "/v1/rooms", body=body)
    answer = connection.getresponse()
    told = json.loads(answer.read())
    connection.close()
    assert (answer.status, told["happened"]) == (400, "a registration of rooms is malformed")
    assert told["to_do"] == "send a RoomsRecord as JSON"
