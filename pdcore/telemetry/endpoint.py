"""A manager's own Prometheus endpoint: http://host:port/metrics for as long as it lives."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable

from aiohttp import web

from pdcore.bootstrap.http.connections import Connections
from pdcore.bootstrap.http.limits import Limits
from pdcore.bootstrap.http.loop import LoopThread
from pdcore.bootstrap.http.site import Site
from pdcore.config.records import Config
from pdcore.errors import TelemetryError, one_line
from pdcore.events import Event, Gauges, Node, Subscriber, Watcher
from pdcore.host.address import join
from pdcore.host.machine import find_place
from pdcore.model import Deadline

__all__ = ["MetricsEndpoint", "endpoints"]

PATH = "/metrics"
LIMITS = Limits(connections=32, body_bytes=1024)
SECONDS = 10.0
"""In which it starts, and in which it ends."""

_log = logging.getLogger("pdcore.metrics")


def endpoints(config: Config) -> list[Subscriber]:
    """Return who serves the metrics of a manager of this configuration, if anybody is to.

    Raises:
        MissingExtraError: prometheus_client is not installed.
    """
    if config.metrics_port is None:
        return []
    return [MetricsEndpoint(config.host, config.metrics_port)]


class MetricsEndpoint(Watcher):
    """A subscriber that counts like :class:`~pdcore.telemetry.prometheus.PrometheusEvents`, and serves that
    from the thread ``pdcore-metrics``: from the start of its manager until that is closed.

    Metrics are worth no request: where it cannot serve, ``failure`` says why, as does the log, and the
    manager goes on. ``address`` is host:port while it serves. It belongs to one manager, which starts and
    ends it.

    Raises:
        MissingExtraError: prometheus_client is not installed.
    """

    def __init__(self, host: str, port: int) -> None:
        from prometheus_client import CollectorRegistry
        from prometheus_client.exposition import choose_encoder

        from pdcore.telemetry.prometheus import PrometheusEvents  # first: it says how to get what it needs

        self._registry, self._chosen = CollectorRegistry(), choose_encoder
        self._events = PrometheusEvents(self._registry)
        self._host, self._port = host, port
        self._site = Site(Connections(LIMITS, time.monotonic, Counter(), _log))
        self._loop: LoopThread | None = None
        self._node: Node | None = None
        self.address = ""
        self.failure: TelemetryError | None = None

    def __call__(self, event: Event) -> None:
        """Count an event."""
        self._events(event)

    def watch(self, node: Node, read: Callable[[], Gauges]) -> None:
        """Serve, if this is the first manager; one that comes later is shown beside it."""
        self._events.watch(node, read)
        if self._node is None:
            self._node = node
            try:
                self._start()
            except Exception as error:  # whatever it is, no manager ends with it
                self.failure = self._cannot_serve(error)
                _log.warning("%s", one_line(self.failure))
                self._end()

    def unwatch(self, node: Node) -> None:
        """Serve no more, if it was the first."""
        self._events.unwatch(node)
        if node == self._node:
            self._end()

    def _start(self) -> None:
        place = find_place(self._host, None)
        self._loop = LoopThread("metrics")
        port = self._loop.call(self._serve(place.listens), Deadline.after(SECONDS))
        self.address = join(place.listens, port)
        _log.info("metrics: http://%s%s", self.address, PATH)

    async def _serve(self, host: str) -> int:
        app = web.Application(middlewares=[self._site.connections.middleware])
        app.router.add_get(PATH, self._answer)
        return await self._site.open(app, host, self._port)

    async def _answer(self, request: web.Request) -> web.Response:
        encode, kind = self._chosen(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": kind})

    def _end(self) -> None:
        loop, self._loop, self.address = self._loop, None, ""
        if loop is not None:
            deadline = Deadline.after(SECONDS)
            try:
                loop.call(self._site.close(), deadline)
            finally:
                loop.close(deadline)

    def _cannot_serve(self, error: Exception) -> TelemetryError:
        why = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        return TelemetryError(
            f"the metrics of a manager are served nowhere: cannot listen on {join(self._host, self._port)}",
            why,
            "choose a free port as metrics_port (0 takes any), and an address of this machine as host",
        )
