"""The channel: all control sockets of one manager, owned by one thread.

Prefill binds a ROUTER, decode dials one DEALER per prefill peer. A post goes out in the thread that makes
it; the owner thread does all else with the sockets. It sleeps in one poll over their descriptors and an
eventfd, and calls back with each message and once per ``tick`` seconds.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

import zmq

from pdcore.config.auth_key import AuthKey
from pdcore.errors import AuthenticationError, PDCoreError, WireError
from pdcore.host.fork import Birthplace
from pdcore.model import Deadline, Incarnation
from pdcore.wire.access.admission import Admission
from pdcore.wire.access.curve import Curve
from pdcore.wire.codec import Codec
from pdcore.wire.complaints import COMPLAINT_SECONDS, Complaints
from pdcore.wire.fit import check_size
from pdcore.wire.frames import Frames
from pdcore.wire.messages import Message
from pdcore.wire.monitor import ConnectionEvent
from pdcore.wire.pieces import join, split
from pdcore.wire.sockets import Route, Sockets, place
from pdcore.wire.stamp import Stamps
from pdcore.wire.wakeup import Wakeup

__all__ = ["Channel", "Route"]

_BATCH = 256
ROUNDS = 2
"""What was put off, and what that put off in turn; what goes on for longer lets the sockets come between."""
LAST_WORDS = 1.0
"""Seconds that a connection stays on which there are last words."""

_log = logging.getLogger("pdcore.wire")


class Channel:
    """Owns the sockets and the thread ``pdcore-<name>-control``.

    ``on_message``, ``on_tick``, ``on_refused`` (a dialled peer wants no key, or another) and
    ``on_connection`` (what happens to a dialled connection; route None: to one of those that dialled us)
    and ``on_unreachable`` (one that dialled us has no connection any more) run on that thread: they must
    not block. A connection to a machine that does not answer for ``dead_after`` seconds is cut (0: never),
    whatever its interpreter does. ``counts`` holds how many messages were malformed, repeated (or late) or
    undeliverable, and how many connections were unauthenticated: they ended in their handshake. ``sent`` says
    how many messages were sent. The sockets' lock guards it, what is undeliverable, and the stamps' numbers.

    Raises:
        ConfigError: there is a key, and libzmq lacks CURVE.
    """

    def __init__(
        self,
        name: str,
        incarnation: Incarnation,
        *,
        on_message: Callable[[Route, Message], None],
        on_tick: Callable[[], None],
        tick: float,
        max_message_bytes: int,
        auth_key: AuthKey | None = None,
        on_refused: Callable[[Route, AuthenticationError], None] | None = None,
        on_connection: Callable[[Route | None, ConnectionEvent], None] | None = None,
        on_unreachable: Callable[[Route], None] | None = None,
        dead_after: float = 0.0,
    ) -> None:
        curve = Curve(auth_key) if auth_key is not None else None
        self._birthplace = Birthplace(self)
        self.counts: Counter[str] = Counter()
        self.sent = 0
        self._on_message, self._on_tick, self._tick = on_message, on_tick, tick
        self._leaving, self._complaints = dict[Route, float](), Complaints(_log, COMPLAINT_SECONDS)
        self._max_bytes, self._codec = max_message_bytes, Codec()
        self._stamps = Stamps[Route](incarnation)
        self._on_refused, self._on_connection = on_refused, on_connection
        self._on_unreachable = on_unreachable
        self._orders: deque[Callable[[], None]] = deque()  # the first one may be under way
        self._put_off: deque[Callable[[], None]] = deque()  # their posts wait for no order
        self._wakeup = Wakeup()
        self._sockets = Sockets(incarnation.encode(), curve, self._wakeup, dead_after)
        self._admission = Admission(
            self._sockets, keyed=curve is not None, turned_away=self._unauthenticated, refused=self._refused
        )
        self._asleep = self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"pdcore-{name}-control", daemon=True)

    def bind(self, host: str, port: int) -> str:
        """Bind the ROUTER before ``start``: its ``host:port``, or BootstrapError if that cannot be had."""
        return self._sockets.bind(host, port)

    def start(self) -> None:
        """Start the owner thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the owner thread runs."""
        return self._thread.is_alive()

    def dial(self, address: str) -> Route:
        """Connect to a bound channel, ``host:port`` or that of a Route; returns at once, from any thread."""
        route = Route(address.encode())
        self.call(partial(self._dial, route))
        return route

    def hang_up(self, route: Route, *, last_words: bool = False) -> None:
        """Drop a dialled connection, from any thread; with ``last_words`` in a second, unless redialled."""
        self.call(partial(self._leave if last_words else self._hang_up, route))

    def post(self, route: Route, message: Message) -> None:
        """Send a message; returns at once, from any thread. Messages on one route keep their order."""
        self._send(route, self._codec.encode(message))

    def call(self, action: Callable[[], None]) -> None:
        """Have the owner thread do something after what was ordered before; returns at once."""
        self._birthplace.require("a control channel")
        self._orders.append(action)
        self._wake()

    def soon(self, action: Callable[[], None]) -> None:
        """Have the owner thread do something once it has handled what has arrived; before its orders."""
        self._put_off.append(action)
        self._wake()

    def close(self, deadline: Deadline) -> None:
        """Send what was posted, close every socket, and end the thread; idempotent. Nothing in a child."""
        if self._birthplace.left:
            return
        self._stopping = True
        if self._thread.is_alive():
            self._wakeup.rouse()
            self._thread.join(deadline.remaining())
            if self._thread.is_alive():  # it releases what is its own when it ends
                _log.error("%s did not end within its deadline", self._thread.name)
        elif not self._sockets.closed:
            self._sockets.close()
            self._wakeup.close()

    def _wake(self) -> None:
        if self._asleep:
            # One wake-up will do: the owner looks at all there is before it sleeps again.
            self._asleep = False
            self._wakeup.rouse()

    def _send(self, route: Route, frames: Frames) -> None:
        """Send now, or after what was ordered before: a peer may have to be dialled first."""
        self._birthplace.require("a control channel")
        # Where the owner is awake it takes along what waits: each send lets go of the interpreter.
        if self._orders or not (self._asleep or threading.get_ident() == self._thread.ident):
            self.call(partial(self._send_now, route, frames))
        else:
            self._send_now(route, frames)

    def _send_now(self, route: Route, frames: Frames) -> None:
        with self._sockets.lock:
            if self._sockets.closed:
                return
            error = self._transmit(route, [self._stamps.next(), *frames])
        if error is not None:
            self._complain("undeliverable", route, error)
            if isinstance(error, zmq.ZMQError) and error.errno == zmq.EHOSTUNREACH and self._on_unreachable:
                self.call(partial(self._on_unreachable, route))
        if self._sockets.stirred:
            self._wake()

    def _transmit(self, route: Route, frames: Frames) -> Exception | None:
        """Send what is stamped, with the sockets' lock; return why it cannot be."""
        try:
            check_size(frames, self._max_bytes)
            if self._sockets.send(route, split(frames)):
                self.sent += 1
            else:
                self.counts["undeliverable"] += 1
        except (zmq.ZMQError, WireError) as error:
            self.counts["undeliverable"] += 1
            return error
        return None

    # --- the owner thread ------------------------------------------------------------------

    def _run(self) -> None:
        next_tick = time.monotonic() + self._tick
        try:
            while True:
                self._asleep = True
                idle = not (self._orders or self._put_off or self._sockets.stirred or self._stopping)
                wait = max(0.0, next_tick - time.monotonic()) if idle else 0.0
                ready = self._sockets.wait(math.ceil(wait * 1000))
                self._asleep = False
                for socket in ready:
                    if self._sockets.is_monitor(socket):
                        self._watch(socket)
                    elif (asked := self._sockets.asked(socket)) is not None:
                        self._admission.answered(*asked)
                    else:
                        self._receive(socket)
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + self._tick
                    self._guarded("tick", self._on_tick)
                    self._hang_up_late()
                for _ in range(ROUNDS):
                    for _ in range(len(self._put_off)):
                        self._guarded("action", self._put_off.popleft())
                while self._orders:
                    self._guarded("order", self._orders[0])
                    self._orders.popleft()  # only now: a post that comes meanwhile goes out after it
                if self._stopping and not self._put_off:
                    return
        finally:
            self._asleep = False
            self._sockets.close()
            self._wakeup.close()

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        for _ in range(_BATCH):
            received = self._sockets.receive(socket)
            if received is None:
                return
            route, pieces = received
            try:
                check_size(pieces, self._max_bytes)
                frames = join(pieces)
                stamp = frames.pop(0).buffer if frames else memoryview(b"")
                message = self._codec.decode(frames)
                fresh = self._stamps.admit(route, stamp)
            except WireError as error:
                self.counts["malformed"] += 1
                self._complain("malformed", route, error)
                continue
            if fresh:
                self._guarded(type(message).__name__, partial(self._on_message, route, message), route)
            else:
                self.counts["repeated"] += 1
        self._sockets.stirred.append(socket)  # others shall not wait for all that it has

    def _watch(self, socket: zmq.Socket[bytes]) -> None:
        for route, event in self._sockets.events(socket, _BATCH):
            self._admission.take(route, event)
            if self._on_connection is not None and self._sockets.is_monitor(socket):
                what, who = f"connection {event.what.name.lower()}", route or b"of those that dial"
                self._guarded(what, partial(self._on_connection, route, event), who)

    def _refused(self, route: Route, error: AuthenticationError) -> None:
        self._unauthenticated(place(route), error)
        if self._on_refused is not None:
            self._guarded("refusal", partial(self._on_refused, route, error), route)

    def _unauthenticated(self, name: str, error: AuthenticationError) -> None:
        self.counts["unauthenticated"] += 1
        self._complaints.about(f"unauthenticated {name}", f"unauthenticated peer {name}: {error}")

    def _guarded(self, what: str, action: Callable[[], None], sender: bytes = b"this process") -> None:
        try:
            action()
        except PDCoreError as error:
            self.counts["refused"] += 1
            name = place(sender)
            self._complaints.about(f"{what} {name}", f"{what}, peer {name}: {error}")
        # One peer's message must never end the thread that serves all of them.
        except Exception as error:
            self.counts["errors"] += 1
            name = place(sender)
            self._complaints.about(f"{what} {name}", f"handling a {what} failed, peer {name}", error)

    def _complain(self, what: str, route: Route, error: Exception) -> None:
        self._complaints.about(f"{what} {place(route)}", f"{what} message, peer {place(route)}: {error}")

    def _dial(self, route: Route) -> None:
        self._leaving.pop(route, None)
        for other in [left for left in self._leaving if place(left) == place(route)]:
            self._hang_up(other)  # or each would take the other's name there, again and again
        self._sockets.dial(route)

    def _leave(self, route: Route) -> None:
        self._leaving[route] = time.monotonic() + LAST_WORDS

    def _hang_up_late(self) -> None:
        for route in [route for route, at in self._leaving.items() if at <= time.monotonic()]:
            self._hang_up(route)

    def _hang_up(self, route: Route) -> None:
        self._leaving.pop(route, None)
        if self._sockets.hang_up(route):
            self._stamps.forget(route)
            self._admission.forget(route)
