"""Requests of strangers to the bootstrap service; a healthy pair registers, resolves and moves meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator

import msgspec
import pytest
from nasty import bent
from pair import Pair, config, paired, pools

from pdcore import DecodeManager, Topology, select
from pdcore.bootstrap import RankRecord
from pdcore.bootstrap.http.limits import Limits
from pdcore.model import Incarnation
from pdcore.testing.bounded import bounded

MAX_BODY_BYTES = Limits().body_bytes
RECORD = RankRecord(Incarnation("f" * 32), "127.0.0.1:1", Topology(dp_size=512, dp_rank=511), 5.0)
ROOMS = {"rooms": [1, 2, 3], "dp_rank": 0}


def ask(address: str, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def refusal(status: int, body: bytes) -> None:
    """A refusal says what happened, what there is and what to do, and is the client's fault."""
    assert 400 <= status < 500 or status == 507, (status, body)
    if body.startswith(b"{"):
        assert set(json.loads(body)) >= {"happened", "there_is", "to_do"}


def still_good(pair: Pair, room: int) -> None:
    """A new decode worker resolves and receives."""
    with DecodeManager(select("local"), pools(), Topology(), config()) as fresh:
        Pair(pair.bootstrap, pair.prefill, fresh).move(room, [room], [room])
    assert ask(pair.bootstrap.address, "GET", "/health")[0] == 200


def bodies(good: object) -> Iterator[bytes]:
    """Yield broken JSON bodies."""
    text = json.dumps(good).encode()
    yield from (text[:length] for length in range(0, len(text), 7))
    yield from (b"\xff" * 100, b"null", b"[" * 20_000, b"{" * 20_000, b'"' + b"a" * 60_000, text + b"}")
    for body in bent(good):
        with contextlib.suppress(TypeError):  # JSON has no bytes
            yield json.dumps(body).encode()


def takes_the_place_of_prefill(body: bytes) -> bool:
    """Whether this is a good registration of the healthy rank: only a shared key tells a forged one."""
    try:
        record = msgspec.json.decode(body, type=RankRecord)
    except Exception:
        return False
    return record.topology.dp_rank == 0


@pytest.mark.parametrize(
    ("path", "good"),
    [("/v1/ranks", json.loads(msgspec.json.encode(RECORD))), ("/v1/rooms", ROOMS)],
    ids=["ranks", "rooms"],
)
def test_no_registration_that_a_stranger_sends_disturbs_the_service(path: str, good: object) -> None:
    with paired() as pair:
        refused = 0
        connection = http.client.HTTPConnection(pair.bootstrap.address, timeout=30)
        for body in bodies(good):
            if takes_the_place_of_prefill(body):
                continue
            connection.request("PUT", path, body)
            response = connection.getresponse()
            answer = response.read()
            if response.status != 204:
                refusal(response.status, answer)
                refused += 1
        connection.close()
        assert refused > 50
        pair.move(2, [1, 2], [3, 4])


@pytest.mark.parametrize(
    "query",
    [
        "dp_rank=x",
        "dp_rank=" + "9" * 5000,
        "dp_rank=-1",
        "dp_rank=1e9",
        "dp_rank=99999999999999999999",
        "wait=x",
        "dp_rank=5&wait=nan",
        "dp_rank=5&wait=-inf",
        "dp_rank=5&wait=-1",
        "choice=nonsense",
        "choice=query&room=-5",
        "choice=query&room=" + "9" * 4000,
        "choice=by_room&room=x",
        "%00=%ff&dp_rank=%e9",
        "a&" * 3000,
    ],
)
def test_no_query_disturbs_the_service(query: str) -> None:
    with paired() as pair:
        status, body = bounded(
            lambda: ask(pair.bootstrap.address, "GET", f"/v1/ranks?{query}"), 30, "the answer"
        )
        if status != 200:
            refusal(status, body)
        still_good(pair, 2)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "/v1/ranks/" + "0" * 32, None),
        ("DELETE", "/v1/ranks/%00%ff%2f..%2f..", None),
        ("DELETE", "/v1/ranks/" + "a" * 7000, None),
        ("DELETE", "/v1/ranks", None),
        ("POST", "/v1/ranks", b"{}"),
        ("PUT", "/v1/ranks/any", b"{}"),
        ("GET", "/v1/ranks/any?wait=x", None),
        ("PUT", "/health", b"{}"),
        ("GET", "/../../etc/passwd", None),
        ("GET", "/v2/ranks", None),
        ("BREW", "/v1/ranks", None),
        ("PUT", "/v1/ranks", b"x" * (MAX_BODY_BYTES + 1)),
        ("PUT", "/v1/ranks", b"x" * (16 * MAX_BODY_BYTES)),
    ],
)
def test_no_request_disturbs_the_service(method: str, path: str, body: bytes | None) -> None:
    with paired() as pair:
        with contextlib.suppress(ConnectionError):  # it may hang up on who sends too much
            status, _ = ask(pair.bootstrap.address, method, path, body)
            assert status == 204 or 400 <= status < 500
        still_good(pair, 2)


@pytest.mark.parametrize(
    "raw",
    [
        b"\0" * 4096,
        b"\x16\x03\x01\x02\x00" + b"\xff" * 600,
        b"GET / HTTP/9.9\r\n\r\n",
        b"PUT /v1/ranks HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"PUT /v1/ranks HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\nx",
        b"PUT /v1/ranks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFF\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 20_000,
    ],
)
def test_bytes_that_are_no_request_do_not_disturb_the_service(raw: bytes) -> None:
    with paired() as pair:
        host, _, port = pair.bootstrap.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as stranger:
            with contextlib.suppress(ConnectionError):
                stranger.sendall(raw)
            still_good(pair, 2)


def test_connections_that_say_nothing_do_not_keep_the_service_busy() -> None:
    with paired() as pair, contextlib.ExitStack() as stack:
        host, _, port = pair.bootstrap.address.rpartition(":")
        threads = threading.active_count()
        for n in range(200):
            idle = stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
            idle.sendall(b"PUT /v1/ranks HTTP/1.1\r\n"[: n % 24])
        still_good(pair, 2)
        assert threading.active_count() <= threads + 2
