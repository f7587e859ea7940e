"""What may happen to one side: its scheduler's calls, messages, ends of what it had begun, and time."""

from __future__ import annotations

import attrs

from pdcore.errors import KVTransferError
from pdcore.model import Generation, PeerIdentity, RoomId
from pdcore.plan import IndexArray
from pdcore.protocol.groups import GroupKey
from pdcore.protocol.results import (
    BytesUnpacked,
    Compared,
    DeliveryDrained,
    DeliveryEnded,
    Examined,
    GroupFailed,
    GroupFound,
    PeerConnected,
    PeerFailed,
    RingQuiet,
    RowChecked,
    RowRead,
    RowWritten,
    SlotWritten,
    SourceReady,
    WriterSilent,
)
from pdcore.wire import Message, RequestMetadata, Route

__all__ = [
    "AllSilent",
    "AnnouncePages",
    "BytesUnpacked",
    "Choose",
    "Clear",
    "Close",
    "Compared",
    "DeliveryDrained",
    "DeliveryEnded",
    "Examined",
    "GiveUp",
    "GroupFailed",
    "GroupFound",
    "Heard",
    "OpenReceive",
    "OpenSend",
    "PeerConnected",
    "PeerFailed",
    "PeerGone",
    "Place",
    "Reconnected",
    "RingQuiet",
    "RowChecked",
    "RowRead",
    "RowWritten",
    "SlotWritten",
    "SourceReady",
    "Stimulus",
    "Supply",
    "Tick",
    "Trouble",
    "WriterSilent",
]


@attrs.frozen
class OpenSend:
    """The scheduler opens a room to send; ``deadline`` is a moment of the clock."""

    room: RoomId
    generation: Generation
    deadline: float


@attrs.frozen
class OpenReceive:
    """The scheduler opens a room to receive, by default from the group ``default``."""

    room: RoomId
    generation: Generation
    deadline: float
    default: GroupKey


@attrs.frozen
class AnnouncePages:
    """``init`` on the sending side."""

    generation: Generation
    pages: int
    aux_index: int | None
    start: int


@attrs.frozen(eq=False)
class Supply:
    """``send``: the next pages; ``waits``: their source may not be read before ``SourceReady``."""

    generation: Generation
    pages: IndexArray
    state_indices: tuple[IndexArray, ...] = ()
    waits: bool = False


@attrs.frozen
class Choose:
    """``init`` on the receiving side."""

    generation: Generation
    key: GroupKey


@attrs.frozen(eq=False)
class Place:
    """``send_metadata``: where the request shall land."""

    generation: Generation
    wanted: RequestMetadata


@attrs.frozen
class GiveUp:
    """End a room as FAILED, unless it has ended: an abort, a refusal, an error of its own."""

    generation: Generation
    failure: KVTransferError


@attrs.frozen
class Clear:
    """The scheduler has done with a room: its id is free."""

    generation: Generation


@attrs.frozen(eq=False)
class Heard:
    """A message came."""

    route: Route
    message: Message


@attrs.frozen
class Trouble:
    """Why a bootstrap service is not reached; "" if it is."""

    bootstrap: str
    why: str


@attrs.frozen
class PeerGone:
    """A peer is not heard of any more, or its engine says that it is gone. None: whoever is there."""

    route: Route
    why: str
    identity: PeerIdentity | None = None


@attrs.frozen
class Reconnected:
    """A connection was cut and is there again: what was under way is lost."""

    route: Route


@attrs.frozen
class AllSilent:
    """The engine is closed: no byte moves any more."""


@attrs.frozen
class Tick:
    """Time has passed."""


@attrs.frozen
class Close:
    """The side ends: every room fails with this, and nobody is let in."""

    failure: KVTransferError


Stimulus = (
    OpenSend
    | OpenReceive
    | AnnouncePages
    | Supply
    | SourceReady
    | Choose
    | Place
    | GiveUp
    | Clear
    | Heard
    | GroupFound
    | GroupFailed
    | Trouble
    | PeerConnected
    | PeerFailed
    | PeerGone
    | Reconnected
    | WriterSilent
    | AllSilent
    | DeliveryEnded
    | DeliveryDrained
    | SlotWritten
    | BytesUnpacked
    | RingQuiet
    | Examined
    | Compared
    | RowRead
    | RowWritten
    | RowChecked
    | Tick
    | Close
)
