"""Who listens, and how events reach them."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import attrs

from pdcore.arguments import callables
from pdcore.events.gauges import Gauges, Watcher
from pdcore.events.kinds import Event, Node
from pdcore.model import Generation, RoomId

__all__ = ["Events", "Subscriber", "Tracer"]

_log = logging.getLogger("pdcore.events")

Subscriber = Callable[[Event], None]


class Tracer(ABC):
    """A subscriber that also names the trace context of a request, which decode sends to prefill."""

    @abstractmethod
    def __call__(self, event: Event) -> None:
        """Take an event."""

    @abstractmethod
    def traceparent(self, node: Node, room: RoomId, generation: Generation) -> str | None:
        """Return the W3C traceparent of an open room; None if it has none."""


@attrs.define(eq=False)
class _Listener:
    subscriber: Subscriber
    logged: bool = False


class Events:
    """The subscribers of one manager.

    Who emits looks at ``on`` first: with nobody listening an event costs that look and is never made.
    The lock guards ``_listeners``, which is replaced as a whole.
    """

    def __init__(self, node: Node, subscribers: Iterable[Subscriber] = ()) -> None:
        self.node = node
        self._lock = threading.Lock()
        self._listeners = tuple(map(_Listener, subscribers))
        self.on = bool(self._listeners)
        self._read: Callable[[], Gauges] | None = None

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Tell somebody of all events from now on; call what is returned to end that.

        Raises:
            ArgumentError: the subscriber cannot be called.
        """
        callables("subscribers", (subscriber,))
        listener = _Listener(subscriber)
        self._change(lambda listeners: (*listeners, listener))
        self._show(listener, self._read)

        def unsubscribe() -> None:
            self._change(lambda listeners: tuple(x for x in listeners if x is not listener))
            self._show(listener, None)

        return unsubscribe

    def show(self, read: Callable[[], Gauges] | None) -> None:
        """Have the watchers among the subscribers look at the manager's figures; None: not any more."""
        self._read = read
        for listener in self._listeners:
            self._show(listener, read)

    def emit(self, event: Event) -> None:
        """Tell all subscribers, in the order they came."""
        for listener in self._listeners:
            try:
                listener.subscriber(event)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit too: a subscriber ends no thread of ours
                self._blame(listener, type(event).__name__, error)

    def traceparent(self, room: RoomId, generation: Generation) -> str | None:
        """Return the trace context that the first tracer among the subscribers has for a room."""
        for listener in self._listeners:
            if isinstance(listener.subscriber, Tracer):
                try:
                    return listener.subscriber.traceparent(self.node, room, generation)
                except Exception as error:
                    self._blame(listener, "traceparent", error)
        return None

    def _change(self, change: Callable[[tuple[_Listener, ...]], tuple[_Listener, ...]]) -> None:
        with self._lock:
            self._listeners = change(self._listeners)
            self.on = bool(self._listeners)

    def _show(self, listener: _Listener, read: Callable[[], Gauges] | None) -> None:
        if isinstance(listener.subscriber, Watcher):
            try:
                if read is None:
                    listener.subscriber.unwatch(self.node)
                else:
                    listener.subscriber.watch(self.node, read)
            except Exception as error:
                self._blame(listener, "watch", error)

    @staticmethod
    def _blame(listener: _Listener, what: str, error: BaseException) -> None:
        if not listener.logged:
            listener.logged = True
            _log.warning(
                "subscriber %r failed with %s and is told on nevertheless (logged once): %r",
                listener.subscriber,
                what,
                error,
                exc_info=error,
            )
