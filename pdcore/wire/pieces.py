"""Frames in pieces of bounded size, so that no stranger makes libzmq hold more than one of them.

libzmq takes in a whole frame of whoever connects before it looks at it, in the handshake too, up to
``MAXMSGSIZE`` per connection. A piece of exactly ``PIECE_BYTES`` goes on with the next one; a shorter
one, which may be empty, is the last of its frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from pdcore.errors import WireError
from pdcore.wire.codec import Frame

__all__ = ["PIECE_BYTES", "join", "split"]

PIECE_BYTES = 128 * 1024
"""Room for 16,383 pages: a longer request costs its receiver a copy."""


class Piece(Frame, Protocol):
    """A received piece: ``zmq.Frame``, or anything with its ``buffer`` and length in bytes."""

    def __len__(self) -> int: ...


@attrs.frozen
class _Joined:
    buffer: memoryview


def split(frames: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """Return the pieces of some frames; none is copied."""
    if all(len(frame) < PIECE_BYTES for frame in frames):
        return list(frames)
    return [
        memoryview(frame)[start : start + PIECE_BYTES]
        for frame in frames
        for start in range(0, len(frame) + 1, PIECE_BYTES)
    ]


def join(pieces: Sequence[Piece]) -> list[Frame]:
    """Return the frames of some pieces; what came in one piece is not copied.

    Raises:
        WireError: a piece is too large, or the last one of a frame is missing.
    """
    sizes = [len(piece) for piece in pieces]
    if max(sizes, default=0) < PIECE_BYTES:
        return list(pieces)
    frames: list[Frame] = []
    held: list[memoryview] = []
    for piece, size in zip(pieces, sizes, strict=True):
        if size >= PIECE_BYTES:
            held.append(piece.buffer)
        elif held:
            frames.append(_Joined(memoryview(b"".join([*held, piece.buffer]))))
            held = []
        else:
            frames.append(piece)
    if held or max(sizes) > PIECE_BYTES:
        raise WireError(
            "a control message is not cut as it should be",
            f"{len(sizes)} pieces, the largest of {max(sizes)} bytes, the last of {sizes[-1]}",
            "run matching pdcore versions on both sides, and let nothing else send to this port",
        )
    return frames
