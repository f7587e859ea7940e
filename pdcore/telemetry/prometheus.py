"""Events as Prometheus counters and histograms, and the managers' figures as gauges: few labels.

None is of a request or a peer.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator

from pdcore.errors import MissingExtraError, TelemetryError
from pdcore.events import (
    ChunkQuarantined,
    Event,
    Gauges,
    HeartbeatMissed,
    Node,
    PairingFailed,
    PeerLost,
    PeerPaired,
    RoomEnded,
    RoomOpened,
    StageEnded,
    Watcher,
)
from pdcore.model import Incarnation
from pdcore.telemetry.figures import FIGURES, Watched

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, Metric
    from prometheus_client.core import GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingExtraError(
        "pdcore.telemetry.prometheus cannot be imported", str(error), "pip install 'pdcore[prometheus]'"
    ) from error

__all__ = ["PrometheusEvents"]

SIDE = ("side", "backend")
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
PARTS = ("bootstrap", "waiting", "transfer", "total")


class PrometheusEvents(Watcher):
    """A subscriber that counts, and shows what managers hold; for any number of managers.

    Those of one registry share its metrics, whoever makes how many: a manager that several of them hear
    counts once. ``side`` is ``prefill`` or ``decode``, ``backend`` the selected name; managers alike in both
    add up. The metrics are:

    - ``pdcore_rooms_opened_total``, and ``pdcore_rooms_ended_total`` by ``outcome`` (``success`` or a
      failure code).
    - ``pdcore_bytes_total``: KV, state and aux on the prefill side, KV alone on the decode side; of
      rooms that succeeded.
    - ``pdcore_request_seconds`` by ``part``, as in :class:`~pdcore.RequestMetrics`; of rooms that
      succeeded.
    - ``pdcore_stage_seconds`` by ``stage`` and ``outcome`` (``success`` or ``error``).
    - ``pdcore_peer_events_total`` by ``event``: paired, pairing_failed, heartbeat_missed, lost.
    - ``pdcore_chunks_quarantined_total``: chunks that failed and could still land.
    - The gauges of :data:`pdcore.telemetry.figures.FIGURES`, looked at when they are scraped. Those of a
      manager that was closed are gone.

    Raises:
        TelemetryError: something else has put metrics of these names into the registry.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._shared = _Shared.of(registry)

    def watch(self, node: Node, read: Callable[[], Gauges]) -> None:
        self._shared.watched.watch(self, node, read)

    def unwatch(self, node: Node) -> None:
        self._shared.watched.unwatch(self, node)
        self._shared.leave(node.incarnation, self)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        if not self._shared.counts(event.node.incarnation, self):
            return
        shared, where = self._shared, (event.node.role.value, event.node.backend)
        if isinstance(event, StageEnded):
            outcome = "success" if event.error is None else "error"
            shared.stage.labels(*where, event.stage.value, outcome).observe(event.seconds)
        elif isinstance(event, RoomOpened):
            shared.opened.labels(*where).inc()
        elif isinstance(event, RoomEnded):
            shared.ended.labels(*where, event.outcome).inc()
            if event.failure is None:
                shared.bytes.labels(*where).inc(event.metrics.nbytes)
                for part in PARTS:
                    shared.request.labels(*where, part).observe(getattr(event.metrics, part))
        elif isinstance(event, ChunkQuarantined):
            shared.quarantined.labels(*where).inc()
        elif (kind := _PEER_EVENTS.get(type(event))) is not None:
            shared.peers.labels(*where, kind).inc()


class _Shared(Collector):
    """The metrics of one registry, and which of its exporters counts a manager's events: the first."""

    def __init__(self) -> None:
        self.watched = Watched()
        self._counting: dict[Incarnation, PrometheusEvents] = {}
        self.opened = Counter("pdcore_rooms_opened", "Requests opened.", SIDE, registry=None)
        self.ended = Counter(
            "pdcore_rooms_ended", "Requests ended, by outcome.", (*SIDE, "outcome"), registry=None
        )
        self.bytes = Counter("pdcore_bytes", "Bytes of requests that succeeded.", SIDE, registry=None)
        self.request = Histogram(
            "pdcore_request_seconds",
            "Seconds of requests that succeeded, by part.",
            (*SIDE, "part"),
            buckets=SECONDS,
            registry=None,
        )
        self.stage = Histogram(
            "pdcore_stage_seconds",
            "Seconds of steps that take time.",
            (*SIDE, "stage", "outcome"),
            buckets=SECONDS,
            registry=None,
        )
        self.peers = Counter("pdcore_peer_events", "What happened to peers.", (*SIDE, "event"), registry=None)
        self.quarantined = Counter(
            "pdcore_chunks_quarantined", "Chunks that failed and could still land.", SIDE, registry=None
        )

    @classmethod
    def of(cls, registry: CollectorRegistry) -> _Shared:
        """Return the metrics of a registry; the first who asks has them made."""
        with _LOCK:
            found = _SHARED.get(registry)
            if found is None:
                found = cls()
                try:
                    registry.register(found)
                except ValueError as error:
                    raise TelemetryError(
                        "the metrics of pdcore cannot be put into this Prometheus registry",
                        str(error),
                        "hand in another one: PrometheusEvents(registry=CollectorRegistry())",
                    ) from error
                _SHARED[registry] = found
            return found

    def counts(self, incarnation: Incarnation, exporter: PrometheusEvents) -> bool:
        """Whether it is this exporter that counts the events of a manager."""
        return self._counting.setdefault(incarnation, exporter) is exporter

    def leave(self, incarnation: Incarnation, exporter: PrometheusEvents) -> None:
        """Have another exporter count them from now on, if there is one."""
        if self._counting.get(incarnation) is exporter:
            del self._counting[incarnation]

    def describe(self) -> Iterator[Metric]:
        """Yield all metrics without a look at a manager."""
        yield from self._events()
        for figure in FIGURES:
            yield GaugeMetricFamily(f"pdcore_{figure.name}", figure.text)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics as they are now."""
        yield from self._events()
        scene = self.watched.scene()
        for figure in FIGURES:
            family = GaugeMetricFamily(f"pdcore_{figure.name}", figure.text, labels=figure.labels)
            for labels, value in figure.of(scene).items():
                family.add_metric(labels, value)
            yield family

    def _events(self) -> Iterator[Metric]:
        for metric in (
            self.opened,
            self.ended,
            self.bytes,
            self.request,
            self.stage,
            self.peers,
            self.quarantined,
        ):
            yield from metric.collect()


_LOCK = threading.Lock()
_SHARED: weakref.WeakKeyDictionary[CollectorRegistry, _Shared] = weakref.WeakKeyDictionary()
"""What is registered where; the lock guards it."""

_PEER_EVENTS: dict[type[Event], str] = {
    PeerPaired: "paired",
    PairingFailed: "pairing_failed",
    HeartbeatMissed: "heartbeat_missed",
    PeerLost: "lost",
}
