"""Events as Prometheus counters and histograms: few labels, none of a request or a peer."""

from __future__ import annotations

from pdcore.errors import MissingExtraError
from pdcore.events import (
    ChunkQuarantined,
    Event,
    HeartbeatMissed,
    PairingFailed,
    PeerLost,
    PeerPaired,
    RoomEnded,
    RoomOpened,
    StageEnded,
)

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
except ImportError as error:
    raise MissingExtraError(
        "pdcore.telemetry.prometheus cannot be imported", str(error), "pip install 'pdcore[prometheus]'"
    ) from error

__all__ = ["PrometheusEvents"]

SIDE = ("side", "backend")
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
PARTS = ("bootstrap", "waiting", "transfer", "total")


class PrometheusEvents:
    """A subscriber that counts, for any number of managers; one per registry.

    ``side`` is ``prefill`` or ``decode``, ``backend`` the selected name. The metrics are:

    - ``pdcore_rooms_opened_total``, and ``pdcore_rooms_ended_total`` by ``outcome`` (``success`` or a
      failure code): their difference is what is open.
    - ``pdcore_bytes_total``: KV, state and aux on the prefill side, KV alone on the decode side; of
      rooms that succeeded.
    - ``pdcore_request_seconds`` by ``part``, as in :class:`~pdcore.metrics.RequestMetrics`; of rooms that
      succeeded.
    - ``pdcore_stage_seconds`` by ``stage`` and ``outcome`` (``success`` or ``error``).
    - ``pdcore_peer_events_total`` by ``event``: paired, pairing_failed, heartbeat_missed, lost.
    - ``pdcore_chunks_quarantined_total``: chunks that failed and could still land.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._opened = Counter("pdcore_rooms_opened", "Requests opened.", SIDE, registry=registry)
        self._ended = Counter(
            "pdcore_rooms_ended", "Requests ended, by outcome.", (*SIDE, "outcome"), registry=registry
        )
        self._bytes = Counter("pdcore_bytes", "Bytes of requests that succeeded.", SIDE, registry=registry)
        self._request = Histogram(
            "pdcore_request_seconds",
            "Seconds of requests that succeeded, by part.",
            (*SIDE, "part"),
            registry=registry,
            buckets=SECONDS,
        )
        self._stage = Histogram(
            "pdcore_stage_seconds",
            "Seconds of steps that take time.",
            (*SIDE, "stage", "outcome"),
            registry=registry,
            buckets=SECONDS,
        )
        self._peers = Counter(
            "pdcore_peer_events", "What happened to peers.", (*SIDE, "event"), registry=registry
        )
        self._quarantined = Counter(
            "pdcore_chunks_quarantined", "Chunks that failed and could still land.", SIDE, registry=registry
        )

    def __call__(self, event: Event) -> None:
        """Count an event."""
        where = event.node.role.value, event.node.backend
        if isinstance(event, StageEnded):
            outcome = "success" if event.error is None else "error"
            self._stage.labels(*where, event.stage.value, outcome).observe(event.seconds)
        elif isinstance(event, RoomOpened):
            self._opened.labels(*where).inc()
        elif isinstance(event, RoomEnded):
            self._ended.labels(*where, event.outcome).inc()
            if event.failure is None:
                self._bytes.labels(*where).inc(event.metrics.nbytes)
                for part in PARTS:
                    self._request.labels(*where, part).observe(getattr(event.metrics, part))
        elif isinstance(event, ChunkQuarantined):
            self._quarantined.labels(*where).inc()
        elif (kind := _PEER_EVENTS.get(type(event))) is not None:
            self._peers.labels(*where, kind).inc()


_PEER_EVENTS: dict[type[Event], str] = {
    PeerPaired: "paired",
    PairingFailed: "pairing_failed",
    HeartbeatMissed: "heartbeat_missed",
    PeerLost: "lost",
}
