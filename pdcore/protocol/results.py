"""What came of actions: what was looked for, peers that engines know, deliveries, digests and rows."""

from __future__ import annotations

import attrs

from pdcore.errors import KVTransferError
from pdcore.model import Generation, PeerIdentity
from pdcore.protocol.chunk import DeliveryId
from pdcore.protocol.groups import GroupKey, Member
from pdcore.wire import Digests, Packed, Route

__all__ = [
    "BytesUnpacked",
    "Compared",
    "DeliveryDrained",
    "DeliveryEnded",
    "Examined",
    "GroupFailed",
    "GroupFound",
    "PeerConnected",
    "PeerFailed",
    "RingQuiet",
    "RowChecked",
    "RowRead",
    "RowWritten",
    "SlotWritten",
    "SourceReady",
    "WriterSilent",
]


@attrs.frozen
class GroupFound:
    """The members of a prefill group are known."""

    key: GroupKey
    senders: tuple[Member, ...]
    others: tuple[Member, ...] = ()
    known_as: GroupKey | None = None
    """By its DP rank, where it was looked for by a room."""


@attrs.frozen
class GroupFailed:
    """A prefill group cannot be found."""

    key: GroupKey
    failure: KVTransferError


@attrs.frozen
class PeerConnected:
    """The engine is connected to a peer, or takes its writes."""

    route: Route
    identity: PeerIdentity


@attrs.frozen
class PeerFailed:
    """The engine cannot be connected to a peer."""

    route: Route
    identity: PeerIdentity
    failure: KVTransferError


@attrs.frozen
class WriterSilent:
    """No byte of a peer can land any more in rooms up to a generation; it may have paired again since.

    None: in any room.
    """

    identity: PeerIdentity
    upto: Generation | None = None


@attrs.frozen
class SourceReady:
    """The source of the chunk that was waited for may be read, or never."""

    generation: Generation
    failure: KVTransferError | None = None


@attrs.frozen
class DeliveryEnded:
    """A delivery has ended, without a failure or with one."""

    delivery: DeliveryId
    failure: KVTransferError | None = None


@attrs.frozen
class DeliveryDrained:
    """No byte of a delivery that has ended can move any more."""

    delivery: DeliveryId


@attrs.frozen(eq=False)
class SlotWritten:
    """The engine has written bytes of a delivery to a slot of a peer: it may be told of them."""

    delivery: DeliveryId
    route: Route
    identity: PeerIdentity
    packed: Packed


@attrs.frozen
class RingQuiet:
    """No byte can land any more in a ring that an earlier pairing with a peer had."""

    route: Route
    identity: PeerIdentity
    ring: int


@attrs.frozen(eq=False)
class BytesUnpacked:
    """What lay in a slot is where it belongs, or why it cannot be there."""

    generation: Generation
    identity: PeerIdentity
    packed: Packed
    failure: KVTransferError | None = None


@attrs.frozen(eq=False)
class Examined:
    """The digests of what was sent, per route, or why they cannot be had."""

    generation: Generation
    digests: tuple[tuple[Route, Digests], ...] = ()
    failure: KVTransferError | None = None


@attrs.frozen(eq=False)
class Compared:
    """What was sent and what arrived is the same, or not."""

    generation: Generation
    route: Route
    digests: Digests
    failure: KVTransferError | None = None


@attrs.frozen
class RowRead:
    """The aux row that goes out, or why it cannot."""

    generation: Generation
    row: bytes = b""
    failure: KVTransferError | None = None


@attrs.frozen
class RowWritten:
    """An aux row that came by message is in its slot, or why not."""

    generation: Generation
    failure: KVTransferError | None = None


@attrs.frozen
class RowChecked:
    """The slot holds the room's row, or not."""

    generation: Generation
    failure: KVTransferError | None = None
