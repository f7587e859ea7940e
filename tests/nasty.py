"""What a stranger may send: every field of a message replaced by what it must not be."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from copy import deepcopy
from typing import TypeVar

import msgspec
import zmq

from pdcore.model import Incarnation, RoomId
from pdcore.wire import MESSAGE_KINDS, Codec, Message
from pdcore.wire.pieces import join, split
from pdcore.wire.stamp import Stamps

__all__ = ["VALUES", "HostileSocket", "bent", "broken_frames"]

HEADER = struct.Struct(">4sHHH")
Frames = list[bytes]
Path = tuple[str | int, ...]
Answer = TypeVar("Answer")

VALUES: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    0.5,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "x" * 1000,
    "\0",
    b"",
    b"\xff" * 64,
    [],
    [[]],
    {},
    [None] * 1000,
)


def leaves(value: object, path: Path = ()) -> Iterator[Path]:
    """Yield the place of every value within plain data, containers too."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        # The second of many equal things tells nothing new.
        for index, inner in enumerate(value[:1]):
            yield from leaves(inner, (*path, index))


def bent(body: object) -> Iterator[object]:
    """Yield copies of plain data in which one value is another, or missing."""
    for path in leaves(body):
        for value in VALUES:
            copy = deepcopy(body)
            place = _place(copy, path)
            place[path[-1]] = value
            yield copy
        copy = deepcopy(body)
        del _place(copy, path)[path[-1]]
        yield copy


def _place(body: object, path: Path) -> dict[str | int, object]:
    for key in path[:-1]:
        body = body[key]  # type: ignore[index]  # plain data of any shape
    return body  # type: ignore[return-value]  # a dict or a list: both are indexed


def broken_frames(message: Message) -> Iterator[Frames]:
    """Yield ways to break a message: its frames, its header, its body, its numbers."""
    head, *arrays = [bytes(frame) for frame in Codec.encode(message)]
    magic, schema, kind, critical = HEADER.unpack_from(head)
    body = head[HEADER.size :]
    for length in {*range(HEADER.size + 2), len(head) // 2, len(head) - 1}:
        yield [head[:length], *arrays]
    yield from ([head + b"\0", *arrays], [head], [*arrays], [head, *arrays, *[b"more"] * 100])
    for other in (0, *MESSAGE_KINDS, 99, 65_535):
        if other != kind:
            yield [HEADER.pack(magic, schema, other, critical) + body, *arrays]
    for other in (0, schema + 1, 65_535):
        yield [HEADER.pack(magic, other, kind, critical) + body, *arrays]
    yield [HEADER.pack(magic, schema, kind, 65_535) + body, *arrays]
    yield [HEADER.pack(b"HTTP", schema, kind, critical) + body, *arrays]
    for array in (b"", b"\0" * 7, b"\xff" * 8, b"\x7f" * 8_000, b"\0" * 800_000):
        yield [head, *[array] * len(arrays)]
    for bad in bent(msgspec.msgpack.decode(body)):
        yield [HEADER.pack(magic, schema, kind, critical) + msgspec.msgpack.encode(bad), *arrays]


CONTEXT = zmq.Context()
"""One for all and never ended: that of a socket which a failed test left open would wait for it."""


class HostileSocket:
    """A raw socket with a name of its own, and good stamps unless told otherwise."""

    def __init__(self, address: str, name: bytes) -> None:
        self._socket = CONTEXT.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, name)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDTIMEO, 30_000)
        self._socket.connect(f"tcp://{address}")
        self._stamps = Stamps[str](Incarnation(name.hex()))
        self._codec = Codec()

    def say(self, frames: Frames) -> None:
        """Send frames after a stamp, in pieces."""
        self._socket.send_multipart(split([self._stamps.next(), *frames]))

    def hear_until(self, kind: type[Answer]) -> Answer:
        """Return the next answer of a kind."""
        while not isinstance(message := self._hear(), kind):
            pass
        return message

    def hear_of(self, room: RoomId) -> None:
        """Wait for an answer about a room."""
        while getattr(self._hear(), "room", None) != room:
            pass

    def _hear(self) -> Message:
        assert self._socket.poll(30_000), "no answer"
        return self._codec.decode(join(self._socket.recv_multipart(copy=False))[1:])

    def close(self) -> None:
        """Close it."""
        self._socket.close()
