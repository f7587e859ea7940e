"""What both managers share: the engine, the channel, the rooms, liveness, and an orderly end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

from pdcore.arguments import require_deadline
from pdcore.config.records import Config
from pdcore.errors import AuthenticationError, KVTransferError, PDCoreError
from pdcore.events import (
    Events,
    Gauges,
    Node,
    Stage,
    Subscriber,
    stage,
)
from pdcore.host.fork import Birthplace
from pdcore.managers.chores import Chores
from pdcore.managers.closed import closed, shut_down
from pdcore.managers.endpoint import Endpoint
from pdcore.managers.health import Health, examined
from pdcore.managers.liveness import Heartbeats
from pdcore.managers.parts import check_parts
from pdcore.managers.pulse import Pulse
from pdcore.managers.ready_engine import find_footing, ready_engine
from pdcore.managers.survivors import Survivors
from pdcore.memory.pools import Pools
from pdcore.model import Deadline, Role, RoomId, new_incarnation
from pdcore.pairing.topology import Topology
from pdcore.protocol import stimuli as s
from pdcore.protocol import words
from pdcore.rooms.endings import Endings
from pdcore.rooms.unsafe import Unsafe
from pdcore.selection.select import Backend
from pdcore.telemetry.endpoint import endpoints
from pdcore.wire import (
    Bye,
    Channel,
    Connection,
    ConnectionEvent,
    Heartbeat,
    Message,
    Route,
    say_if_open,
)

__all__ = ["Manager"]

SHUT_DOWN = "it shut down in order"
LAST_WORDS = 2.0  # seconds to say so in, whatever the engine took
TICK = 0.1
"""Seconds between two looks at deadlines, heartbeats and quarantined transfers."""
AT_ONCE = 64
"""Messages that are handled together at most: no answer waits for more."""

Self = TypeVar("Self", bound="Manager")


class Manager(Endpoint):
    """One side of one rank. Owns the engine, the control channel and all rooms; a context manager.

    Raises at construction:
        ArgumentError: a part is of another kind than is due, such as a name instead of a backend.
        AddressError: ``host`` or ``advertise`` is no address that it can have.
        EngineError: too few file descriptors are free.
        EngineError, RegistrationError, TransportMismatchError: the engine does not start as asked.
        ConfigError: the configuration asks for what this engine cannot do.
        LayoutError: aux over TCP with aux buffers on a device.
        MissingExtraError: ``metrics_port`` is set, and prometheus_client is not installed.
    """

    def __init__(
        self,
        role: Role,
        backend: Backend,
        pools: Pools,
        topology: Topology,
        config: Config | None,
        subscribers: Sequence[Subscriber] = (),
    ) -> None:
        config = Config() if config is None else config
        check_parts(backend, pools, topology, config, subscribers)
        self._birthplace = Birthplace(self)
        self.role = role
        self.backend = backend
        self.pools = pools
        self.topology = topology
        self.config = config
        self.incarnation = new_incarnation()
        node = Node(role, backend.name, self.incarnation)
        heard = [*backend.subscribers(), *subscribers, *endpoints(config)]
        self.events = Events(node, heard)
        self.endings = Endings()
        self.heartbeats: Heartbeats[Route] = Heartbeats(
            config.liveness.interval, config.liveness.max_failures, config.timeouts.bootstrap
        )
        self._chores = Chores()
        self._closing = threading.Lock()
        self._closed = self._mute = False
        self._ticked_at = time.monotonic()
        self._heard: list[s.Heard] = []  # by the control thread, since it was last idle
        self.place = find_footing(role, backend.spec, config)
        ready = ready_engine(role, backend, pools, config, self.place, self.events)
        self.engine, self.inline, self.staging = ready.engine, ready.inline, ready.staging
        self.aux_transports, self._regions = ready.aux_transports, ready.regions
        say_if_open(config.auth_key, self.place.listens)
        self.channel = self._open_channel()
        self.survivors = Survivors(self.channel.post, lambda: self._peers(), self._process_of)
        self._pulse = Pulse(self.heartbeats, self._chores, self.channel.post, self.events, self)

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Tell somebody of all events from now on; call what is returned to end that.

        The manager's start is over by then: who wants to hear of it as well is handed in as one of
        the ``subscribers`` when the manager is made.
        """
        self._require_here()
        return self.events.subscribe(subscriber)

    def finished(self, deadline: Deadline) -> list[RoomId]:
        """Wait for rooms that ended since the last call; [] at the deadline.

        The scheduler's completion queue: it wakes when a room ends, so nothing needs to poll. Only
        with the inline model a sender's ``poll`` or ``wait`` must still be called, since those
        advance it.

        A room that ended before it was ``release_safe`` is returned once more when it became so, unless it
        was cleared.

        Raises:
            ArgumentError: what is handed in is no deadline.
        """
        self._require_here()
        until = require_deadline("the deadline of finished()", deadline)
        while (ended := self.endings.finished(until, self._due)) is None:
            self.feed(s.Tick())
        return ended

    def unsafe(self) -> Unsafe:
        """Return the pages of ended rooms that may not be reused yet, and why; from any thread."""
        self._require_here()
        return Unsafe.of(list(self.driver.handles.values()), self._forsaken())

    def snapshot(self) -> Gauges:
        """Return figures of this moment: rooms by state, peers, what is parked and what is not safe yet.

        Cheap, from any thread, at any time. :meth:`unsafe` says why pages are not safe.
        """
        unsafe = self.unsafe()
        return self._figures(
            Gauges(
                self.events.node,
                serving=not self._closed and self.channel.alive,
                quiet=self._quiet(),
                rooms=self._by_state(),
                unsafe_rooms=len(unsafe.rooms),
                unsafe_pages=unsafe.pages,
                forsaken=unsafe.forsaken,
            )
        )

    def health(self) -> Health:
        """Return what keeps this manager from its work; never blocks, from any thread, at any time."""
        self._require_here()
        return examined(
            self.role,
            closed=self._closed,
            alive=self.channel.alive,
            quiet=self._quiet(),
            others=self._problems(),
        )

    def close(self) -> None:
        """End every room, the engine, the channel and all threads; idempotent. Nothing in a forked child.

        Raises:
            EngineError: all has ended, but the engine could not prove that no byte moves any more.
        """
        if self._birthplace.left:
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
        deadline = Deadline.after(self.config.timeouts.shutdown)
        drained = False
        try:
            self.feed(s.Close(self._shutdown_error()))
            self._end_threads(deadline)
            # What nobody could prove drained ends with the engine.
            with stage(self.events, Stage.CLOSE):
                self.engine.close()
            drained = self.engine.capabilities.silent_after_close
            self._engine_closed(tell=drained)
        finally:
            for route in self._peers():
                self.channel.post(route, Bye(self.incarnation, SHUT_DOWN, drained))
            try:
                self._leave(Deadline.after(max(deadline.remaining(), LAST_WORDS)))
            finally:
                self.channel.close(Deadline.after(max(deadline.remaining(), LAST_WORDS)))
                self.endings.shut()
                self.events.show(None)

    def _open_channel(self, make: Callable[..., Channel] = Channel) -> Channel:
        """Return the control channel, not started; fault injection makes another kind."""
        return make(
            self.role.value,
            self.incarnation,
            on_message=self._hear,
            on_tick=self._on_tick,
            tick=min(TICK, self.config.liveness.interval / 2),
            max_message_bytes=self.config.control.max_message_bytes,
            auth_key=self.config.auth_key,
            on_refused=self._on_refused,
            on_connection=self._on_connection,
            on_unreachable=self.heartbeats.disconnected,
            dead_after=self.heartbeats.limit,
        )

    def _discard(self) -> None:
        """Undo a construction that failed before anything ran."""
        self.engine.close()
        self.channel.close(Deadline.after(self.config.timeouts.shutdown))

    def _due(self) -> float | None:
        """Return the moment at which the next room misses its deadline."""
        return self.driver.look(lambda machine: machine.due)

    def _quiet(self) -> float:
        return max(0.0, time.monotonic() - self._ticked_at)

    def _check_open(self) -> None:
        self._require_here()
        if self._closed:
            raise closed(self.role)

    def _unopened(self, error: PDCoreError) -> KVTransferError:
        """Return why a room is FAILED from birth that could not be opened for this."""
        return self._shutdown_error() if self._closed else KVTransferError.of(error)

    def _shutdown_error(self) -> KVTransferError:
        return shut_down(self.role, self.incarnation)

    # --- on the control thread -------------------------------------------------------------

    def _hear(self, route: Route, message: Message) -> None:
        if isinstance(message, Heartbeat) and self._beats(route, message):
            return
        if self.survivors.heard(route, message):
            return
        self._heard.append(s.Heard(route, message))
        if len(self._heard) == 1:
            self.channel.soon(self._take_heard)
        elif len(self._heard) >= AT_ONCE:
            self._take_heard()

    def _take_heard(self) -> None:
        """Handle what has arrived together: who waits here is woken once for all of it."""
        heard, self._heard = self._heard, []
        if heard:
            self.driver.feed(*heard)

    def _on_tick(self) -> None:
        self._take_heard()
        self._ticked_at = now = time.monotonic()
        if not self._closed:  # nobody shall take it for a stranger's after our last word
            self._pulse.beat(now, Heartbeat(self.incarnation))
        self._expire()
        self.feed(s.Tick())

    def _on_connection(self, route: Route | None, event: ConnectionEvent) -> None:
        """Something happened to a connection to a peer that was dialled (None: of one that dialled us)."""
        self._take_heard()  # it came before
        self.heartbeats.note(route, event)
        if route is not None and event.what is Connection.HANDSHAKEN:
            self.feed(s.Reconnected(route))

    def _on_refused(self, route: Route, error: AuthenticationError) -> None:
        """A peer that this side dialled will have nothing to do with it."""
        self._take_heard()
        peer = self._machine.peers.by_route.get(route)
        if peer is not None:
            self.feed(s.PeerFailed(route, peer.identity, words.turned_away(peer.identity, error)))
