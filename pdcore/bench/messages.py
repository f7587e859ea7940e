"""What the benchmark asks of its far side."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from pdcore.children import Question

__all__ = ["Command", "Join", "Load", "Loaded", "RawTarget", "decode_command"]


class RawTarget(msgspec.Struct, frozen=True):
    """The far engine: its endpoint and the export of its regions."""

    endpoint: bytes
    regions: bytes


class Join(Question[RawTarget], frozen=True):
    """Expect raw writes from the engine at ``endpoint``, requests from the prefill at ``bootstrap``."""

    endpoint: bytes
    bootstrap: str


class Loaded(msgspec.Struct, frozen=True):
    """A load was served: seconds from receiver to SUCCESS of each request, wall and CPU seconds of all."""

    latencies: list[float]
    wall: float
    cpu: float


class Load(Question[Loaded], frozen=True):
    """Serve ``requests`` rooms from ``first_room`` on, ``in_flight`` at a time, each of ``pages`` pages.

    Both sides take the same load. ``scattered`` pages are a random permutation, else they adjoin.
    """

    first_room: int
    requests: int
    in_flight: int
    pages: int
    scattered: bool


Command: TypeAlias = Join | Load

decode_command = msgspec.json.Decoder[Command](Command).decode
"""The command on a line."""
