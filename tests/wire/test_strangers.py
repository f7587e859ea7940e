"""Who has no key gets as far as no message, and makes us hold little and not for long: over raw TCP."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
from pair import config, early, paired, peers, soon
from wire_samples import SAMPLES

from pdcore import Deadline
from pdcore.config.auth_key import AuthKey
from pdcore.wire import Codec
from pdcore.wire.pieces import PIECE_BYTES

KEY = "a key of sixteen or more bytes"
MIB = 2**20
PIECE = PIECE_BYTES
HOLDS_A_PIECE = 200

SERVING = f"""
import sys, attrs
from pair import config, paired
with paired(attrs.evolve(config(), auth_key={KEY!r})) as pair:
    print(pair.prefill.address, flush=True)
    for room, _ in enumerate(sys.stdin, 1):
        pair.move(room, [1, 2], [3, 4])
        counts = pair.prefill.channel.counts
        print({{*counts, "unauthenticated"}}, flush=True)
"""


class Serving:
    """A process with a keyed pair that moves a request whenever it is asked to."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        self._said, self._ask = self._process.stdout, self._process.stdin
        self.address = self._said.readline().strip()

    def moves(self) -> None:
        """Move a request; nothing of a stranger may have reached the codec."""
        self._ask.write("\n")
        self._ask.flush()
        assert self._said.readline() == "{'unauthenticated'}\n"

    def resident(self) -> int:
        """Return its resident memory in bytes."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * 4096

    def close(self) -> None:
        self._ask.close()
        assert self._process.wait(60) == 0
        self._said.close()


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    process = Serving()
    process.moves()
    yield process
    process.close()


def greeting(mechanism: bytes) -> bytes:
    return b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)


def command(body: bytes, announced: int | None = None) -> bytes:
    return b"\x06" + struct.pack(">Q", len(body) if announced is None else announced) + body


def part(size: int) -> bytes:
    """A frame of a message that goes on."""
    return b"\x03" + struct.pack(">Q", size) + bytes(size)


def zmtp_frame(body: bytes) -> bytes:
    return b"\x02" + struct.pack(">Q", len(body)) + body


READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"

FLOODS: dict[str, tuple[bytes, bytes]] = {
    "parts of a message, no security": (greeting(b"NULL") + command(READY), part(PIECE // 2)),
    "parts of a message in a handshake": (greeting(b"CURVE"), part(PIECE // 2)),
    "parts of the largest size": (greeting(b"CURVE"), part(PIECE)),
    "one endless command": (greeting(b"CURVE") + command(b"", 2**40), bytes(MIB)),
    "one command of the largest message": (greeting(b"CURVE") + command(b"", 256 * MIB), bytes(MIB)),
    "a greeting that does not end": (b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE", bytes(MIB)),
    "a hello of another protocol version": (b"\xff" + bytes(8) + b"\x7f\x01\x05", part(PIECE // 2)),
    "no greeting of the protocol": (b"GET / HTTP/1.1\r\n", b"X: " + bytes(MIB)),
}


@contextmanager
def call(address: str) -> Iterator[socket.socket]:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as stranger:
        yield stranger


def flood(address: str, opening: bytes, more: bytes, most: int) -> int:
    """Send until the other side hangs up; return how many bytes it took at the most."""
    sent = 0
    with call(address) as stranger:
        try:
            stranger.sendall(opening)
            while sent < most:
                stranger.sendall(more)
                sent += len(more)
        except ConnectionError:
            pass
    return sent


@pytest.mark.parametrize("what", FLOODS)
def test_a_stranger_that_floods_a_keyed_port_is_cut_and_fills_nothing(what: str, serving: Serving) -> None:
    before = serving.resident()
    sent = flood(serving.address, *FLOODS[what], most=64 * MIB)
    assert sent < 64 * MIB, "it was not cut"
    assert serving.resident() - before < 16 * MIB
    serving.moves()


def test_many_strangers_hold_no_more_than_a_piece_each(serving: Serving) -> None:
    before, strangers = serving.resident(), list[socket.socket]()
    host, _, port = serving.address.rpartition(":")
    for _ in range(HOLDS_A_PIECE):
        strangers.append(socket.create_connection((host, int(port)), timeout=30))
        strangers[-1].sendall(greeting(b"CURVE") + command(bytes(PIECE - 1), PIECE))
    serving.moves()
    held = serving.resident() - before
    assert held < HOLDS_A_PIECE * (PIECE + 64 * 1024)
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize("said", [b"", greeting(b"CURVE")], ids=["says nothing", "greets"])
@pytest.mark.parametrize("key", [None, AuthKey(KEY)])
def test_a_stranger_that_does_not_finish_its_handshake_is_cut_in_time(
    key: AuthKey | None, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdcore.wire.sockets.HANDSHAKE_SECONDS", 0.2)
    with paired(attrs.evolve(config(), auth_key=key)) as pair:
        with call(pair.prefill.address) as stranger:
            stranger.sendall(said)
            while stranger.recv(4096):  # until it hangs up
                pass
        pair.move(1, [1], [1])


def test_a_flood_of_strangers_leaves_a_keyed_pair_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with paired(attrs.evolve(config(), auth_key=AuthKey(KEY))) as pair:
        pair.move(1, [1], [1])
        before = {thread.name for thread in threading.enumerate()}
        for _ in range(100 // len(SAMPLES) + 1):
            for message in SAMPLES.values():
                frames = [bytes(24), *map(bytes, Codec.encode(message))]
                opening = greeting(b"NULL") + command(READY)
                flood(pair.prefill.address, opening, b"".join(map(zmtp_frame, frames)), 1)
        pair.move(2, [3, 4], [5, 6])
        deadline = soon()
        while pair.prefill.channel.counts["unauthenticated"] < 100:
            assert not deadline.expired
            pair.prefill.finished(Deadline.after(0.01))
        pair.move(3, [7], [8])
        assert set(pair.prefill.channel.counts) == {"unauthenticated"}
        assert len(peers(pair.prefill)) == 1
        assert early(pair.prefill) == 0
        assert {thread.name for thread in threading.enumerate()} <= before
    said = [text for text in caplog.messages if "unauthenticated peer" in text]
    assert 1 <= len(said) <= 2
    assert len(said) == len(caplog.messages)
    assert all("this side requires a key" in text or "did not finish" in text for text in said)


def test_without_a_key_one_frame_is_bounded_all_the_same() -> None:
    with paired(config()) as pair:
        opening = greeting(b"NULL") + command(READY)
        endless = b"\x02" + struct.pack(">Q", 200 * MIB) + bytes(MIB)
        assert flood(pair.prefill.address, opening, endless, 64 * MIB) < 64 * MIB
        pair.move(1, [1], [1])
