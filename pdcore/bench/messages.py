"""What the benchmark says to its far side: one JSON object per line."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from pdcore.demo.messages import Fatal, Stop, WorkerSettings

__all__ = ["Command", "Event", "Export", "Join", "Load", "Loaded", "decode_command", "decode_event"]


class Join(msgspec.Struct, frozen=True, tag=True):
    """Expect raw writes from the engine at ``endpoint``, requests from the prefill at ``bootstrap``."""

    endpoint: bytes
    bootstrap: str


class Load(msgspec.Struct, frozen=True, tag=True):
    """Serve ``requests`` rooms from ``first_room`` on, ``in_flight`` at a time, each of ``pages`` pages.

    Both sides take the same load. ``scattered`` pages are a random permutation, else they adjoin.
    """

    first_room: int
    requests: int
    in_flight: int
    pages: int
    scattered: bool


Command: TypeAlias = WorkerSettings | Join | Load | Stop


class Export(msgspec.Struct, frozen=True, tag=True):
    """The far engine: its endpoint and the export of its regions."""

    endpoint: bytes
    regions: bytes


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """A load was served: seconds from receiver to SUCCESS of each request, wall and CPU seconds of all."""

    latencies: list[float]
    wall: float
    cpu: float


Event: TypeAlias = Export | Loaded | Fatal

decode_command = msgspec.json.Decoder[Command](Command).decode
"""The command on a line."""

decode_event = msgspec.json.Decoder[Event](Event).decode
"""The event on a line."""
