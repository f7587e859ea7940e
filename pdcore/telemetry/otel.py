"""Events as OpenTelemetry spans: one per request on each side, joined across the two processes; and gauges.

Decode asks for the request, so its span is the parent of prefill's: its traceparent travels in the
request's metadata. Decode's own parent is the context in which ``DecodeManager.receiver`` was called;
the one in which ``PrefillManager.sender`` was called is linked to prefill's span.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import attrs

from pdcore.errors import MissingExtraError
from pdcore.events import (
    ChunkLanded,
    ChunkQuarantined,
    ChunkSubmitted,
    Event,
    Gauges,
    MetadataReceived,
    MetadataSent,
    Node,
    RoomEnded,
    RoomEvent,
    RoomOpened,
    Tracer,
    Watcher,
)
from pdcore.model import Generation, Incarnation, Role, RoomId

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Link, Span, SpanKind, StatusCode, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise MissingExtraError(
        "pdcore.telemetry.otel cannot be imported", str(error), "pip install 'pdcore[otel]'"
    ) from error

from pdcore.telemetry.meter import watched_by

__all__ = ["OpenTelemetryEvents"]

_Key = tuple[Incarnation, RoomId, Generation]
_W3C = TraceContextTextMapPropagator()


@attrs.frozen
class _RoomWithoutParent:
    """A room of prefill whose parent is not known yet: when it was opened, and in which context."""

    opened_ns: int
    context: trace.SpanContext


class OpenTelemetryEvents(Tracer, Watcher):
    """A subscriber that makes spans, and shows what managers hold; for any number of managers.

    The spans are ``pdcore.receive`` (client) on the decode side and ``pdcore.send`` (server) on the
    prefill side, with the steps of the request as span events. The gauges are those of
    :data:`pdcore.telemetry.figures.FIGURES`, as ``pdcore.open_rooms`` and so on; all exporters with the same
    meter provider share them. The lock guards ``_spans`` and
    ``_waiting``, which hold the rooms that have not ended.
    """

    def __init__(
        self, provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self._watched = watched_by(meter_provider)
        self._tracer = trace.get_tracer("pdcore", tracer_provider=provider)
        self._lock = threading.Lock()
        self._spans: dict[_Key, Span] = {}
        self._waiting: dict[_Key, _RoomWithoutParent] = {}

    def __call__(self, event: Event) -> None:
        if not isinstance(event, RoomEvent):
            return
        key = event.node.incarnation, event.room, event.generation
        if isinstance(event, RoomOpened):
            self._open(key, event)
        elif isinstance(event, MetadataReceived):
            self._asked(key, event)
        elif isinstance(event, RoomEnded):
            self._end(key, event)
        elif isinstance(event, MetadataSent):
            self._note(key, "metadata sent", {"pdcore.pages": event.pages})
        elif isinstance(event, ChunkSubmitted):
            self._note(
                key, "chunk submitted", {"pdcore.bytes": event.nbytes, "pdcore.entries": event.entries}
            )
        elif isinstance(event, ChunkLanded):
            self._note(key, "chunk landed", {"pdcore.bytes": event.nbytes})
        elif isinstance(event, ChunkQuarantined):
            self._note(key, "chunk quarantined", {"pdcore.bytes": event.nbytes})

    def watch(self, node: Node, read: Callable[[], Gauges]) -> None:
        self._watched.watch(self, node, read)

    def unwatch(self, node: Node) -> None:
        self._watched.unwatch(self, node)

    def traceparent(self, node: Node, room: RoomId, generation: Generation) -> str | None:
        with self._lock:
            span = self._spans.get((node.incarnation, room, generation))
        if span is None:
            return None
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(span))
        return carrier.get("traceparent")

    def _open(self, key: _Key, event: RoomOpened) -> None:
        if event.node.role is Role.PREFILL:
            # Spans carry wall-clock times, which tell the order across machines; pdcore waits by none.
            waiting = _RoomWithoutParent(time.time_ns(), trace.get_current_span().get_span_context())
            with self._lock:
                self._waiting[key] = waiting
            return
        span = self._start("pdcore.receive", SpanKind.CLIENT, event)
        with self._lock:
            self._spans[key] = span

    def _asked(self, key: _Key, event: MetadataReceived) -> None:
        parent = _W3C.extract({"traceparent": event.trace} if event.trace else {}, Context())
        with self._lock:
            first = key in self._waiting
        span = self._started(key, event, parent)
        if span is None:
            return
        span.add_event("metadata received", {"pdcore.pages": event.pages, "pdcore.peer": str(event.peer)})
        asker = trace.get_current_span(parent).get_span_context()
        if asker.is_valid and not first:
            span.add_link(asker)  # another rank of the decode group: only one can be the parent

    def _end(self, key: _Key, event: RoomEnded) -> None:
        # A room that nobody asked for has a span of its own.
        span = self._started(key, event, Context())
        if span is None:
            return
        with self._lock:
            self._spans.pop(key, None)
        metrics = event.metrics
        span.set_attributes(
            {
                "pdcore.outcome": event.outcome,
                "pdcore.pages": metrics.pages,
                "pdcore.bytes": metrics.nbytes,
                "pdcore.bootstrap_seconds": metrics.bootstrap,
                "pdcore.waiting_seconds": metrics.waiting,
                "pdcore.transfer_seconds": metrics.transfer,
            }
        )
        if event.failure is not None:
            if event.failure.code.is_error:
                span.set_status(StatusCode.ERROR, event.failure.happened)
            span.set_attribute("pdcore.failure", str(event.failure))
        span.end()

    def _started(self, key: _Key, event: RoomEvent, parent: Context) -> Span | None:
        """Return the span of a room; one that waits for its parent starts now, with this one."""
        with self._lock:
            waiting = self._waiting.get(key)
            if waiting is None:
                return self._spans.get(key)
        span = self._start("pdcore.send", SpanKind.SERVER, event, parent, waiting)
        with self._lock:
            # If another thread was first, this one is dropped, and never exported since it never ends.
            if self._waiting.pop(key, None) is not None:
                self._spans[key] = span
            return self._spans.get(key)

    def _start(
        self,
        name: str,
        kind: SpanKind,
        event: RoomEvent,
        parent: Context | None = None,
        waiting: _RoomWithoutParent | None = None,
    ) -> Span:
        return self._tracer.start_span(
            name,
            parent,
            kind,
            {
                "pdcore.room": event.room,
                "pdcore.side": event.node.role.value,
                "pdcore.backend": event.node.backend,
                "pdcore.incarnation": event.node.incarnation,
            },
            links=[Link(waiting.context)] if waiting and waiting.context.is_valid else None,
            start_time=waiting.opened_ns if waiting else None,
        )

    def _note(self, key: _Key, name: str, attributes: dict[str, int]) -> None:
        with self._lock:
            span = self._spans.get(key)
        if span is not None:
            span.add_event(name, attributes)
