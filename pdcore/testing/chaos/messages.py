"""What the chaos run and its workers say to each other: one JSON object per line."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

__all__ = [
    "Abort",
    "Account",
    "Begin",
    "Books",
    "Closed",
    "Command",
    "Ended",
    "Event",
    "Fatal",
    "Ready",
    "Start",
    "Stop",
    "Touched",
    "decode_command",
    "decode_event",
]


class Start(msgspec.Struct, frozen=True, tag=True):
    """The first line: what worker to be. Ports of 0 are any free ones; rooms have ``deadline`` seconds."""

    role: str
    backend: str
    options: dict[str, str]
    seed: int
    deadline: float
    control_port: int = 0
    bootstrap_port: int = 0


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Serve one side of a request of so many pages, from the prefill at ``bootstrap`` if this is decode."""

    room: int
    pages: int
    bootstrap: str = ""


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Abort a room, if it is open."""

    room: int


class Account(msgspec.Struct, frozen=True, tag=True):
    """Answer with :class:`Books`."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Close in order; the worker answers with :class:`Closed` and exits."""


Command: TypeAlias = Start | Begin | Abort | Account | Stop


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker serves; a prefill worker tells its ports."""

    transport: str
    control_port: int = 0
    bootstrap_port: int = 0


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A room ended: as SUCCESS if ``code`` is empty. ``wrong`` says what is not as it must be there."""

    room: int
    code: str
    error: str = ""
    wrong: str = ""


class Touched(msgspec.Struct, frozen=True, tag=True):
    """Free pages were written to."""

    pages: list[int]


class Books(msgspec.Struct, frozen=True, tag=True):
    """How many rooms have not ended, and how many have ended but may not be reused yet."""

    running: int
    unreleased: int


class Closed(msgspec.Struct, frozen=True, tag=True):
    """The worker has closed its manager: what of it is still there, which must be nothing."""

    pages: int
    threads: list[str]
    sockets: list[str]
    error: str = ""


class Fatal(msgspec.Struct, frozen=True, tag=True):
    """The worker cannot go on; it exits after this."""

    error: str


Event: TypeAlias = Ready | Ended | Touched | Books | Closed | Fatal

decode_command = msgspec.json.Decoder[Command](Command).decode
"""The command on a line."""

decode_event = msgspec.json.Decoder[Event](Event).decode
"""The event on a line."""
