"""What the chaos run and its workers say to each other."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from pdcore.children import Fatal

__all__ = [
    "AbortRoom",
    "BeginRoom",
    "ChaosWorkerSettings",
    "Command",
    "Event",
    "PagesTouched",
    "RoomOver",
    "WorkerClosed",
    "WorkerServes",
    "decode_command",
    "decode_event",
]


class ChaosWorkerSettings(msgspec.Struct, frozen=True):
    """What worker to be. Ports of 0 are any free ones; rooms have ``deadline`` seconds.

    ``packed``: all their bytes go through slots.
    """

    role: str
    backend: str
    options: dict[str, str]
    seed: int
    deadline: float
    packed: bool = False
    control_port: int = 0
    bootstrap_port: int = 0


class BeginRoom(msgspec.Struct, frozen=True, tag=True):
    """Serve one side of a request of so many pages, from the prefill at ``bootstrap`` if this is decode."""

    room: int
    pages: int
    bootstrap: str = ""


class AbortRoom(msgspec.Struct, frozen=True, tag=True):
    """Abort a room, if it is open."""

    room: int


Command: TypeAlias = BeginRoom | AbortRoom


class WorkerServes(msgspec.Struct, frozen=True, tag=True):
    """The worker serves; a prefill worker tells its ports."""

    transport: str
    control_port: int = 0
    bootstrap_port: int = 0


class RoomOver(msgspec.Struct, frozen=True, tag=True):
    """A room ended: as SUCCESS if ``code`` is empty. ``wrong`` says what is not as it must be there."""

    room: int
    code: str
    error: str = ""
    wrong: str = ""


class PagesTouched(msgspec.Struct, frozen=True, tag=True):
    """Free pages were written to."""

    pages: list[int]


class WorkerClosed(msgspec.Struct, frozen=True, tag=True):
    """The parent hung up, and the manager is closed: what of it is still there, which must be nothing."""

    pages: int
    threads: list[str]
    sockets: list[str]
    error: str = ""


Event: TypeAlias = WorkerServes | RoomOver | PagesTouched | WorkerClosed | Fatal

decode_command = msgspec.json.Decoder[Command](Command).decode
"""The command on a line."""

decode_event = msgspec.json.Decoder[Event](Event).decode
"""The event on a line."""
