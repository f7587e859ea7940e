"""One authenticated session of the control channel: its keys, and the codes made with them."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

from pdcore.secret import AuthKey

__all__ = ["HEAD", "MAGIC", "SEAL", "Frame", "Frames", "Session", "Step"]

Frames = list[bytes | memoryview]
MAGIC = b"PDKA"
HEAD = struct.Struct(">4sB")
SEAL = struct.Struct(">4sBQ32s")
"""Magic, step, number and code; stands before the frames that it seals."""


class Step(IntEnum):
    """What an authentication frame is; the value is what travels on the wire."""

    HELLO = 1
    CHALLENGE = 2
    SEALED = 3
    REFUSE = 4


class Frame(Protocol):
    """A received frame."""

    @property
    def buffer(self) -> memoryview:
        """The bytes, not copied."""
        ...


class Session:
    """The two keys of one connection, and the numbers that were used.

    ``identity`` is the dialler's; ``hello`` and ``challenge`` are the nonces of the two sides.
    """

    def __init__(
        self, key: AuthKey, identity: bytes, hello: bytes, challenge: bytes, *, dialled: bool
    ) -> None:
        self.challenge = challenge
        ways = [
            hmac.new(
                key.derive(f"pdcore control 1 from {who}", identity, hello, challenge), None, hashlib.sha256
            )
            for who in ("dialler", "bound")
        ]
        self._out, self._in = ways if dialled else ways[::-1]
        self._bound = ways[1]
        self._sent = self._heard = 0

    @property
    def proof(self) -> bytes:
        """What proves that the bound side has the key; number 0 seals nothing else."""
        return _code(self._bound, 0, [])

    def seal(self, frames: Frames) -> Frames:
        """Return the frames behind a seal with the next number."""
        self._sent += 1
        return [SEAL.pack(MAGIC, Step.SEALED, self._sent, _code(self._out, self._sent, frames)), *frames]

    def admits(self, seal: memoryview, frames: Sequence[Frame]) -> bool:
        """Whether a seal is right for these frames, and later than all before."""
        if len(seal) != SEAL.size:
            return False
        _, _, number, given = SEAL.unpack(seal)
        right = hmac.compare_digest(given, _code(self._in, number, [frame.buffer for frame in frames]))
        if not right or number <= self._heard:
            return False
        self._heard = number
        return True


def _code(key: hmac.HMAC, number: int, frames: Sequence[bytes | memoryview]) -> bytes:
    mac = key.copy()
    mac.update(struct.pack(f">{2 + len(frames)}Q", number, len(frames), *map(len, frames)))
    for frame in frames:
        mac.update(frame)
    return mac.digest()
