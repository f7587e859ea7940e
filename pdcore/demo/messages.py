"""What the router and its workers say to each other."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from pdcore.children import Fatal
from pdcore.model import CPU, Device
from pdcore.pairing.topology import DPChoice, Topology

__all__ = [
    "Command",
    "Drop",
    "Event",
    "Ready",
    "RoomFailed",
    "RoomReceived",
    "RoomSent",
    "Serve",
    "Stopped",
    "WorkerSettings",
    "decode_command",
    "decode_event",
]


class WorkerSettings(msgspec.Struct, frozen=True):
    """What a worker is started with: everything that holds for its whole life.

    ``topology`` is its place in its group. ``page_size`` is in tokens, ``num_pages`` per buffer;
    ``chunk_pages`` 0 sends a prompt at once; ``slots`` are aux rows, so the most requests in flight; times
    are in seconds. ``transfer_model``: None is the backend's. ``bootstrap`` is where a prefill rank
    registers; empty: with a service of its own. ``dp`` is how decode learns which prefill replica has a room.
    ``device`` is where the KV memory lies.
    """

    model: str = "qwen2.5-0.5b"
    page_size: int = 16
    num_pages: int = 1024
    seed: int = 0
    slots: int = 8
    chunk_pages: int = 0
    backend: str = "local"
    options: dict[str, str] = {}
    transfer_model: Literal["workers", "inline"] | None = None
    aux: Literal["auto", "engine", "tcp"] = "auto"
    staging: Literal["auto", "off", "always"] = "auto"
    deadline: float = 60.0
    topology: Topology = Topology()
    bootstrap: str = ""
    dp: DPChoice = DPChoice.BY_ROOM
    device: Device = CPU


class Serve(msgspec.Struct, frozen=True, tag=True):
    """Prefill or decode one request.

    For decode only: ``bootstrap`` is the address that prefill reported, ``held`` how many leading pages
    decode has of an earlier request, so that they need not be sent.
    A room may be served once in a worker's life: its pages would hold the right bytes from before.
    """

    room: int
    tokens: int
    bootstrap: str = ""
    held: int = 0


class Drop(msgspec.Struct, frozen=True, tag=True):
    """Give a request up, because another rank has failed it; does nothing once it has ended."""

    room: int


Command: TypeAlias = Serve | Drop


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The worker can serve; ``bootstrap`` is set by a prefill worker, ``transport`` is the effective one."""

    pid: int
    backend: str
    transport: str
    bootstrap: str = ""


class RoomSent(msgspec.Struct, frozen=True, tag=True):
    """Prefill ended a room as SUCCESS.

    Times are monotonic seconds, comparable within one machine: the first ``send``, the first byte that
    could move, the end. ``nbytes`` went to all decode ranks together, in ``entries`` writes.
    """

    room: int
    first_send: float
    moving_from: float
    ended: float
    nbytes: int
    entries: int


class RoomReceived(msgspec.Struct, frozen=True, tag=True):
    """Decode ended a room as SUCCESS and has looked at what is there; ``ended`` is as in :class:`RoomSent`.

    ``pages`` and ``nbytes`` (of KV and state) have come from prefill. ``mismatch`` is empty if every byte,
    of the pages that decode held as well, and the aux row are as the seed says. The digests are 16 hex
    digits.
    """

    room: int
    ended: float
    pages: int
    nbytes: int
    aux_rows: int
    digest: str
    expected_digest: str
    mismatch: str = ""


class RoomFailed(msgspec.Struct, frozen=True, tag=True):
    """A room ended as FAILED, or could not be started; ``code`` is that of the KVTransferError."""

    room: int
    code: str
    error: str


class Stopped(msgspec.Struct, frozen=True, tag=True):
    """The last event of a worker that ended in order, as it does when its parent hangs up.

    ``peak_rss`` is resident memory in bytes. ``messages`` counts what it sent to the other side
    over the control channel, heartbeats included.
    """

    peak_rss: int
    messages: int


Event: TypeAlias = Ready | RoomSent | RoomReceived | RoomFailed | Stopped | Fatal

decode_command = msgspec.json.Decoder[Command](Command).decode
"""The command on a line."""

decode_event = msgspec.json.Decoder[Event](Event).decode
"""The event on a line."""
