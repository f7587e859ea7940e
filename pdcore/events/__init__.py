"""What happens, as typed events: engines, peers, and every step of a request, for logs, metrics, traces.

Who listens is a subscriber: any callable that takes an :class:`Event`. It is called on the thread where
the event happens (a scheduler's, a lane, the control thread), without any lock of pdcore, so it must be
quick and ready for several threads. One that raises is logged once and told on; it changes nothing.

``kinds`` are the events, ``gauges`` what a manager holds at one moment, ``dispatch`` tells the subscribers,
``stages`` times what takes time.
"""

from __future__ import annotations

from pdcore.events.dispatch import Events, Subscriber, Tracer
from pdcore.events.gauges import Gauges, PeerState, Watcher
from pdcore.events.kinds import (
    ChunkDrained,
    ChunkEvent,
    ChunkLanded,
    ChunkQuarantined,
    ChunkSubmitted,
    EngineStarted,
    Event,
    HeartbeatMissed,
    MetadataReceived,
    MetadataSent,
    Node,
    PairingFailed,
    PeerEvent,
    PeerLost,
    PeerPaired,
    RoomEnded,
    RoomEvent,
    RoomOpened,
)
from pdcore.events.stages import Stage, StageEnded, stage

__all__ = [
    "ChunkDrained",
    "ChunkEvent",
    "ChunkLanded",
    "ChunkQuarantined",
    "ChunkSubmitted",
    "EngineStarted",
    "Event",
    "Events",
    "Gauges",
    "HeartbeatMissed",
    "MetadataReceived",
    "MetadataSent",
    "Node",
    "PairingFailed",
    "PeerEvent",
    "PeerLost",
    "PeerPaired",
    "PeerState",
    "RoomEnded",
    "RoomEvent",
    "RoomOpened",
    "Stage",
    "StageEnded",
    "Subscriber",
    "Tracer",
    "Watcher",
    "stage",
]
