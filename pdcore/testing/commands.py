"""What the near side asks of the far process: one JSON line each way, typed by msgspec."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = [
    "AbortRoom",
    "Admit",
    "ClearRoom",
    "Close",
    "Command",
    "Connect",
    "Deregister",
    "Digests",
    "FillPools",
    "Fork",
    "Guards",
    "PoolDigests",
    "Pumped",
    "Read",
    "Receive",
    "Retire",
    "Revoke",
    "RoomEnd",
    "Serve",
    "Start",
    "Started",
    "StopPump",
    "Unregister",
    "WatchPools",
    "WatchRoom",
]


class Start(msgspec.Struct, tag=True):
    """Start an engine of a role and register regions of these lengths. Answers :class:`Started`."""

    backend: str
    options: dict[str, Any]
    role: str
    lengths: list[int]
    seed: int


class Started(msgspec.Struct):
    """The engine runs, and its memory is registered. ``memory``: a file descriptor of each region."""

    endpoint: bytes
    export: bytes
    memory: list[int]


class Admit(msgspec.Struct, tag=True):
    """Admit a writer."""

    endpoint: bytes


class Revoke(msgspec.Struct, tag=True):
    """Revoke a writer. Answers the quiescence, as its value."""

    endpoint: bytes
    seconds: float


class Digests(msgspec.Struct, tag=True):
    """Read the memory back. Answers one digest per region."""


class Read(msgspec.Struct, tag=True):
    """Read one region back. Answers its bytes."""

    region: int


class Guards(msgspec.Struct, tag=True):
    """Look at the guards. Answers, by region, the offsets at which they were overwritten."""


class Connect(msgspec.Struct, tag=True):
    """Connect to a peer, and go on writing all of region 0 to its region 0 until told otherwise.

    Answers when one write is done.
    """

    endpoint: bytes
    export: bytes


class StopPump(msgspec.Struct, tag=True):
    """Stop those writes. Answers :class:`Pumped`."""


class Pumped(msgspec.Struct):
    """How many writes were done, and the error that ended them, or empty."""

    writes: int
    error: str


class Fork(msgspec.Struct, tag=True):
    """Fork, and use the engine in the child. Answers the name of the error that the child got."""


class Deregister(msgspec.Struct, tag=True):
    """Deregister, and register the same memory again. Answers :class:`Started`."""


class Unregister(msgspec.Struct, tag=True):
    """Deregister; the memory stays."""


class Close(msgspec.Struct, tag=True):
    """Close the engine; the memory stays."""


class Serve(msgspec.Struct, tag=True):
    """Start a decode manager with the pools of :mod:`pdcore.testing.worker`."""

    backend: str
    options: dict[str, Any]
    bootstrap: str
    model: str
    aux: Literal["auto", "engine"]


class Receive(msgspec.Struct, tag=True):
    """Open a room, and ask for its pages and its aux row."""

    room: int
    pages: list[int]
    slot: int
    seconds: float


class WatchRoom(msgspec.Struct, tag=True):
    """Poll a room until it has ended and its pages may be reused. Answers :class:`RoomEnd`."""

    room: int
    slot: int
    seconds: float


class RoomEnd(msgspec.Struct):
    """The states a room was seen in, the last as it is now; why it failed; its aux field, or -1."""

    seen: list[int]
    safe: bool
    code: str
    reason: str
    token: int


class AbortRoom(msgspec.Struct, tag=True):
    """Abort a room."""

    room: int


class ClearRoom(msgspec.Struct, tag=True):
    """Clear a room, so that its id can be used again."""

    room: int


class FillPools(msgspec.Struct, tag=True):
    """Fill KV buffer ``i`` from ``seed + i``."""

    seed: int


class PoolDigests(msgspec.Struct, tag=True):
    """Read the KV buffers back. Answers one digest per buffer."""


class WatchPools(msgspec.Struct, tag=True):
    """Look at the KV buffers for a while. Answers whether any byte of them changed."""

    seconds: float


class Retire(msgspec.Struct, tag=True):
    """Close the decode manager."""


Command = (
    Start
    | Admit
    | Revoke
    | Digests
    | Read
    | Guards
    | Connect
    | StopPump
    | Fork
    | Deregister
    | Unregister
    | Close
    | Serve
    | Receive
    | WatchRoom
    | AbortRoom
    | ClearRoom
    | FillPools
    | PoolDigests
    | WatchPools
    | Retire
)
