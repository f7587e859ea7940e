"""What the near side asks of the far process, and what each question is answered with."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from pdcore.children import Question

__all__ = [
    "AbortReceived",
    "AdmitWriter",
    "ClearReceived",
    "CloseDecode",
    "CloseEngine",
    "Command",
    "DamagedGuards",
    "DecodeCommand",
    "DeregisterMemory",
    "EngineCommand",
    "FillPools",
    "ForkEngine",
    "MemoryDigests",
    "PoolDigests",
    "Pumped",
    "ReadRegion",
    "ReceivePages",
    "RegisterAgain",
    "RegisteredEngine",
    "RevokeWriter",
    "RoomEnd",
    "StartDecode",
    "StartEngine",
    "StartPump",
    "StopPump",
    "WatchPools",
    "WatchRoom",
    "decode_command",
]


class RegisteredEngine(msgspec.Struct, frozen=True):
    """The engine runs, and its memory is registered. ``memory``: a file descriptor of each region."""

    endpoint: bytes
    export: bytes
    memory: list[int]


class StartEngine(Question[RegisteredEngine], frozen=True):
    """Start an engine of a role and register regions of these lengths."""

    backend: str
    options: dict[str, Any]
    role: str
    lengths: list[int]
    seed: int


class AdmitWriter(Question[None], frozen=True):
    """Admit a writer."""

    endpoint: bytes


class RevokeWriter(Question[str], frozen=True):
    """Revoke a writer. Answers the quiescence, as its value."""

    endpoint: bytes
    seconds: float


class MemoryDigests(Question[list[str]], frozen=True):
    """Read the memory back. Answers one digest per region."""


class ReadRegion(Question[bytes], frozen=True):
    """Read one region back. Answers its bytes."""

    region: int


class DamagedGuards(Question[dict[int, list[int]]], frozen=True):
    """Look at the guards. Answers, by region, the offsets at which they were overwritten."""


class StartPump(Question[None], frozen=True):
    """Connect to a peer, and go on writing all of region 0 to its region 0 until told otherwise.

    Answers when one write is done.
    """

    endpoint: bytes
    export: bytes


class Pumped(msgspec.Struct, frozen=True):
    """How many writes were done, and the error that ended them, or empty."""

    writes: int
    error: str


class StopPump(Question[Pumped], frozen=True):
    """Stop those writes."""


class ForkEngine(Question[str], frozen=True):
    """Fork, and use the engine in the child. Answers the name of the error that the child got."""


class RegisterAgain(Question[RegisteredEngine], frozen=True):
    """Deregister, and register the same memory again."""


class DeregisterMemory(Question[None], frozen=True):
    """Deregister; the memory stays."""


class CloseEngine(Question[None], frozen=True):
    """Close the engine; the memory stays."""


class StartDecode(Question[None], frozen=True):
    """Start a decode manager with the pools of :mod:`pdcore.testing.far.pools`."""

    backend: str
    options: dict[str, Any]
    bootstrap: str
    model: str
    aux: Literal["auto", "engine"]
    staging: Literal["off", "always"]


class ReceivePages(Question[None], frozen=True):
    """Open a room, and ask for its pages and its aux row."""

    room: int
    pages: list[int]
    slot: int
    seconds: float


class RoomEnd(msgspec.Struct, frozen=True):
    """The states a room was seen in, the last as it is now; why it failed; its aux field, or -1."""

    seen: list[int]
    safe: bool
    code: str
    reason: str
    token: int


class WatchRoom(Question[RoomEnd], frozen=True):
    """Poll a room until it has ended and its pages may be reused."""

    room: int
    slot: int
    seconds: float


class AbortReceived(Question[None], frozen=True):
    """Abort a room."""

    room: int


class ClearReceived(Question[None], frozen=True):
    """Clear a room, so that its id can be used again."""

    room: int


class FillPools(Question[None], frozen=True):
    """Fill KV buffer ``i`` from ``seed + i``."""

    seed: int


class PoolDigests(Question[list[str]], frozen=True):
    """Read the KV buffers back. Answers one digest per buffer."""


class WatchPools(Question[bool], frozen=True):
    """Look at the KV buffers for a while. Answers whether any byte of them changed."""

    seconds: float


class CloseDecode(Question[None], frozen=True):
    """Close the decode manager."""


EngineCommand: TypeAlias = (
    StartEngine
    | AdmitWriter
    | RevokeWriter
    | MemoryDigests
    | ReadRegion
    | DamagedGuards
    | StartPump
    | StopPump
    | ForkEngine
    | RegisterAgain
    | DeregisterMemory
    | CloseEngine
)
DecodeCommand: TypeAlias = (
    ReceivePages
    | WatchRoom
    | AbortReceived
    | ClearReceived
    | FillPools
    | PoolDigests
    | WatchPools
    | CloseDecode
)
Command: TypeAlias = EngineCommand | StartDecode | DecodeCommand

decode_command = msgspec.json.Decoder[Command](Command).decode
"""The question on a line."""
