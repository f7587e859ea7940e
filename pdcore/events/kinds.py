"""Every kind of event: frozen values that say what happened, where, and to which request or peer."""

from __future__ import annotations

import time

import attrs

from pdcore.errors import FailureCode, KVTransferError
from pdcore.events.metrics import RequestMetrics
from pdcore.model import EffectiveTransport, Generation, Incarnation, PeerIdentity, Role, RoomId

__all__ = [
    "ChunkDrained",
    "ChunkEvent",
    "ChunkLanded",
    "ChunkQuarantined",
    "ChunkSubmitted",
    "EngineStarted",
    "Event",
    "HeartbeatMissed",
    "MetadataReceived",
    "MetadataSent",
    "Node",
    "PairingFailed",
    "PeerEvent",
    "PeerLost",
    "PeerPaired",
    "RoomEnded",
    "RoomEvent",
    "RoomOpened",
]


@attrs.frozen
class Node:
    """The manager that an event comes from; ``backend`` is the name that it was selected by."""

    role: Role
    backend: str
    incarnation: Incarnation


@attrs.frozen
class Event:
    """Something that happened at ``node``, at ``at`` seconds of the monotonic clock."""

    node: Node
    at: float = attrs.field(factory=time.monotonic, kw_only=True, eq=False)


@attrs.frozen
class EngineStarted(Event):
    """The engine runs, on this transport."""

    transport: EffectiveTransport


@attrs.frozen
class PeerEvent(Event):
    """Something about a peer."""

    peer: PeerIdentity


@attrs.frozen
class PeerPaired(PeerEvent):
    """Requests can be exchanged with it.

    ``engine_version`` is that of its engine's library; ``remarks`` say what differs without keeping the two
    apart, such as engines of two versions.
    """

    engine_version: str = ""
    remarks: tuple[str, ...] = ()


@attrs.frozen
class PairingFailed(PeerEvent):
    """It was refused, refused us, or could not be reached; ``why`` is the error's text."""

    code: FailureCode
    why: str


@attrs.frozen
class HeartbeatMissed(PeerEvent):
    """One more heartbeat did not come: ``in_a_row`` of them by now."""

    in_a_row: int


@attrs.frozen
class PeerLost(PeerEvent):
    """It is gone; ``rooms`` requests depend on it, and those that have not ended fail."""

    why: str
    rooms: int


@attrs.frozen
class RoomEvent(Event):
    """A step of one request; the generation is this side's and tells a reused room id from the old one."""

    room: RoomId
    generation: Generation


@attrs.frozen
class RoomOpened(RoomEvent):
    """A sender or receiver was made; emitted on the thread that made it."""


@attrs.frozen
class MetadataSent(RoomEvent):
    """Decode told all prefill ranks where it wants the request."""

    pages: int


@attrs.frozen
class MetadataReceived(RoomEvent):
    """Prefill knows where a decode rank wants the request; emitted once all ranks have asked.

    ``trace`` is the W3C traceparent that decode sent along, not checked.
    """

    peer: PeerIdentity
    pages: int
    trace: str | None


@attrs.frozen
class ChunkEvent(RoomEvent):
    """A step of one chunk towards one decode rank, on the prefill side."""

    peer: PeerIdentity
    nbytes: int


@attrs.frozen
class ChunkSubmitted(ChunkEvent):
    """It was planned, and the engine gets it as fast as it takes it."""

    pages: int
    entries: int
    is_last: bool


@attrs.frozen
class ChunkLanded(ChunkEvent):
    """All its bytes are there; ``seconds`` since it was submitted. So many ``slots`` carried it packed."""

    seconds: float
    slots: int = 0


@attrs.frozen
class ChunkQuarantined(ChunkEvent):
    """It failed, and its bytes may still land: the pages stay out of reuse."""


@attrs.frozen
class ChunkDrained(ChunkEvent):
    """A quarantined chunk can't land any more; ``seconds`` since it was submitted."""

    seconds: float


@attrs.frozen
class RoomEnded(RoomEvent):
    """The request ended: ``failure`` is None if it succeeded. Who waits is woken after it.

    No event of a room that succeeded follows; of one that failed, those of what was under way may.
    """

    failure: KVTransferError | None
    metrics: RequestMetrics

    @property
    def outcome(self) -> str:
        """``success``, or the value of the failure's code."""
        return "success" if self.failure is None else self.failure.code.value
