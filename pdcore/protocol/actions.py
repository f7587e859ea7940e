"""What a side shall do next. A driver carries actions out in their order, outside its lock."""

from __future__ import annotations

import attrs

from pdcore.errors import KVTransferError
from pdcore.model import Generation, PeerIdentity, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.protocol.chunk import DeliveryId, TransferKVChunk
from pdcore.protocol.groups import GroupKey
from pdcore.protocol.slot_actions import FreeSlot, Unpack
from pdcore.wire import Digests, Message, RequestMetadata, Route

__all__ = [
    "Action",
    "Admit",
    "Asked",
    "AwaitSource",
    "Begun",
    "Cancel",
    "CheckRow",
    "Compare",
    "Connect",
    "Dial",
    "Ended",
    "Examine",
    "Find",
    "Forget",
    "FreeSlot",
    "Lost",
    "Paired",
    "Post",
    "Promised",
    "ReadRow",
    "Revoke",
    "Ship",
    "Silent",
    "Suspect",
    "TurnedAway",
    "Unpack",
    "WriteRow",
]


@attrs.frozen(eq=False)
class Post:
    """Send a message. To a peer that was lost meanwhile it is not sent."""

    route: Route
    message: Message


@attrs.frozen(eq=False)
class Ship:
    """Copy a chunk to where a peer wants it; answered by ``DeliveryEnded``, then ``DeliveryDrained``."""

    delivery: DeliveryId
    generation: Generation
    chunk: TransferKVChunk
    route: Route
    wanted: RequestMetadata


@attrs.frozen
class Cancel:
    """Submit nothing more of a room."""

    generation: Generation


@attrs.frozen(eq=False)
class AwaitSource:
    """Wait until the source of a chunk may be read; answered by ``SourceReady``."""

    generation: Generation
    chunk: TransferKVChunk


@attrs.frozen
class Examine:
    """Digest what was sent of a room; answered by ``Examined``."""

    generation: Generation


@attrs.frozen(eq=False)
class Compare:
    """Digest what arrived; answered by ``Compared``."""

    generation: Generation
    route: Route
    digests: Digests


@attrs.frozen
class ReadRow:
    """Read the aux row that goes out by message; answered by ``RowRead``."""

    generation: Generation
    slot: int


@attrs.frozen
class WriteRow:
    """Put an aux row that came by message into its slot; answered by ``RowWritten``."""

    generation: Generation
    slot: int
    row: bytes


@attrs.frozen
class CheckRow:
    """Look whether a slot holds the row of its room; answered by ``RowChecked``."""

    generation: Generation
    slot: int


@attrs.frozen
class Find:
    """Look a prefill group up; answered by ``GroupFound`` or ``GroupFailed``."""

    key: GroupKey


@attrs.frozen
class Dial:
    """Connect to a prefill rank and watch over the connection."""

    route: Route
    identity: PeerIdentity


@attrs.frozen
class TurnedAway:
    """A rank that asked to pair does not fit, or may not."""

    identity: PeerIdentity
    failure: KVTransferError


@attrs.frozen(eq=False)
class Paired:
    """A peer is paired: tell who listens."""

    identity: PeerIdentity
    description: PeerDescription


@attrs.frozen
class Lost:
    """Let go of a peer: it is lost, or, not ``paired`` yet, cannot be.

    ``dialled`` by this side; what was said last shall still go out where it ``stays``. So many ``rooms``
    depended on it; ``in_order``: it said itself that it leaves.
    """

    route: Route
    identity: PeerIdentity
    failure: KVTransferError
    paired: bool
    dialled: bool
    stays: bool
    rooms: int
    in_order: bool


@attrs.frozen(eq=False)
class Connect:
    """Connect the engine to a decode rank; answered by ``PeerConnected`` or ``PeerFailed``.

    ``ring``: the staging ring that it lends.
    """

    route: Route
    identity: PeerIdentity
    description: PeerDescription
    ring: int | None = None


@attrs.frozen(eq=False)
class Admit:
    """Have the engine take a prefill rank's writes; answered by ``PeerConnected`` or ``PeerFailed``."""

    route: Route
    identity: PeerIdentity
    description: PeerDescription


@attrs.frozen(eq=False)
class Revoke:
    """Prove that a lost peer writes no more to rooms up to a generation; ``WriterSilent`` may come of it."""

    identity: PeerIdentity
    description: PeerDescription
    upto: Generation


@attrs.frozen
class Suspect:
    """The engine says that a peer is gone."""

    route: Route
    identity: PeerIdentity
    failure: KVTransferError


@attrs.frozen
class Begun:
    """A room was opened: tell who listens."""

    room: RoomId
    generation: Generation


@attrs.frozen(eq=False)
class Promised:
    """A rank that wants a room is one of those that get it."""

    generation: Generation
    identity: PeerIdentity
    wanted: RequestMetadata


@attrs.frozen
class Asked:
    """The requests for a room, for so many pages, go out now, to so many ranks."""

    room: RoomId
    generation: Generation
    pages: int
    ranks: int


@attrs.frozen
class Ended:
    """A room has ended: tell who listens, and wake who waits. ``silent``: no byte of it can move any more."""

    generation: Generation
    silent: bool = False


@attrs.frozen
class Silent:
    """No byte of a room that has ended can move any more."""

    generation: Generation


@attrs.frozen
class Forget:
    """A room is cleared and silent: nothing of it is kept."""

    generation: Generation


Action = (
    Post
    | Ship
    | FreeSlot
    | Unpack
    | Cancel
    | AwaitSource
    | Examine
    | Compare
    | ReadRow
    | WriteRow
    | CheckRow
    | Find
    | Dial
    | TurnedAway
    | Paired
    | Lost
    | Connect
    | Admit
    | Revoke
    | Suspect
    | Begun
    | Promised
    | Asked
    | Ended
    | Silent
    | Forget
)
