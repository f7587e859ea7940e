"""The channel: all control sockets of one manager, owned by one thread.

Prefill binds a ROUTER, decode dials one DEALER per prefill peer. Any thread may ``post``; the owner
thread alone touches the sockets. It sleeps in one poll over the sockets and an eventfd, so that a
post wakes it, and calls back with each message and once per ``tick`` seconds.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import NewType

import zmq

from pdcore.errors import AuthenticationError, BootstrapError, PDCoreError, WireError
from pdcore.model import Deadline, Incarnation
from pdcore.secret import AuthKey
from pdcore.wire.auth import KeyedGate, OpenGate
from pdcore.wire.codec import Codec
from pdcore.wire.complaints import COMPLAINT_SECONDS, Complaints
from pdcore.wire.messages import Message
from pdcore.wire.stamp import STAMP_BYTES, Stamps

__all__ = ["Channel", "Route"]

Route = NewType("Route", bytes)
"""Names one peer of a channel: a dialled address, or the identity with which it dialled us."""

_HIGH_WATER = 100_000
_BATCH = 256
_log = logging.getLogger("pdcore.wire")

Frames = list[bytes | memoryview]


class Channel:
    """Owns the sockets and the thread ``pdcore-<name>-control``.

    ``on_message``, ``on_tick`` and ``on_refused`` (a dialled peer wants no key, or another) run on that
    thread: they must neither block nor plan. ``counts`` holds how many messages were malformed,
    unauthenticated, repeated (or late) or undeliverable, ``sent`` how many were sent.
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
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.sent = 0
        self._identity = incarnation.encode()
        self._on_message, self._on_tick, self._tick = on_message, on_tick, tick
        self._max_bytes = max_message_bytes
        self._codec = Codec()
        self._stamps = Stamps[Route](incarnation)
        self._complaints = Complaints(_log, COMPLAINT_SECONDS)
        self._on_refused = on_refused
        self._gate: KeyedGate[Route] | OpenGate[Route] = (
            KeyedGate(auth_key, self._identity, self._transmit, self._refused)
            if auth_key is not None
            else OpenGate(self._transmit, self._refused)
        )
        self._context = zmq.Context()
        self._router: zmq.Socket[bytes] | None = None
        self._dealers: dict[Route, zmq.Socket[bytes]] = {}
        self._routes: dict[zmq.Socket[bytes], Route] = {}
        self._orders: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._waking = threading.Lock()  # keeps a closed, reused descriptor from being written to
        self._poller = zmq.Poller()
        self._poller.register(self._wake, zmq.POLLIN)
        self._asleep = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"pdcore-{name}-control", daemon=True)

    def bind(self, host: str, port: int) -> str:
        """Bind the ROUTER before ``start`` and return its ``host:port``.

        Raises:
            BootstrapError: the port is in use or the host is not an address of this machine.
        """
        router = self._socket(zmq.ROUTER)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            router.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as error:
            router.close()
            raise BootstrapError(
                f"the control port {host}:{port} cannot be bound",
                error.strerror or str(error),
                "choose a free port (0 takes any) and an address of this machine: control.port, host",
            ) from error
        self._router = router
        self._poller.register(router, zmq.POLLIN)
        bound = router.getsockopt_string(zmq.LAST_ENDPOINT)
        return f"{host}:{bound.rsplit(':', 1)[1]}"

    def start(self) -> None:
        """Start the owner thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the owner thread runs."""
        return self._thread.is_alive()

    def dial(self, address: str) -> Route:
        """Connect to a bound channel; returns at once, from any thread."""
        route = Route(address.encode())
        self.call(partial(self._dial, route))
        return route

    def hang_up(self, route: Route) -> None:
        """Drop a dialled connection and what was not sent on it; from any thread."""
        self.call(partial(self._hang_up, route))

    def post(self, route: Route, message: Message) -> None:
        """Send a message; returns at once, from any thread. Messages on one route keep their order."""
        self.call(partial(self._send, route, self._codec.encode(message)))

    def post_if(self, wanted: Callable[[], bool], route: Route, message: Message) -> None:
        """Post a message that goes out only if the owner thread finds then that it is wanted."""
        self.call(partial(self._send_if, wanted, route, self._codec.encode(message)))

    def call(self, action: Callable[[], None]) -> None:
        """Have the owner thread do something after what was ordered before; returns at once."""
        self._orders.append(action)
        if self._asleep:
            # One wake-up will do: the owner looks at every order before it sleeps again.
            self._asleep = False
            self._rouse()

    def close(self, deadline: Deadline) -> None:
        """Send what was posted, close every socket, and end the thread; idempotent."""
        self._stopping = True
        if self._thread.is_alive():
            self._rouse()
            self._thread.join(deadline.remaining())
            if self._thread.is_alive():  # it releases what is its own when it ends
                _log.error("%s did not end within its deadline", self._thread.name)
        elif not self._context.closed:
            self._release()

    def _rouse(self) -> None:
        with self._waking:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # --- the owner thread ------------------------------------------------------------------

    def _run(self) -> None:
        next_tick = time.monotonic() + self._tick
        try:
            while True:
                self._asleep = True
                idle = not (self._orders or self._stopping)
                wait = max(0.0, next_tick - time.monotonic()) if idle else 0.0
                ready = self._poller.poll(math.ceil(wait * 1000))
                self._asleep = False
                for socket, _ in ready:
                    if isinstance(socket, zmq.Socket):
                        self._receive(socket)
                    else:
                        os.eventfd_read(self._wake)
                if time.monotonic() >= next_tick:
                    next_tick = time.monotonic() + self._tick
                    self._guarded("tick", self._on_tick)
                while self._orders:
                    self._guarded("order", self._orders.popleft())
                if self._stopping:
                    return
        finally:
            self._asleep = False
            self._release()

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        for _ in range(_BATCH):
            # Asking costs a tenth of the exception by which an empty socket would answer.
            if not int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                return
            frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            route = Route(frames.pop(0).bytes) if socket is self._router else self._routes[socket]
            opened = self._gate.open(route, frames)
            if opened is None:
                continue
            frames = opened
            try:
                stamp = frames.pop(0).buffer if frames else memoryview(b"")
                message = self._codec.decode(frames)
                fresh = self._stamps.admit(route, stamp)
            except WireError as error:
                self._count("malformed", route, error)
                continue
            if fresh:
                self._guarded(type(message).__name__, partial(self._on_message, route, message), route)
            else:
                self.counts["repeated"] += 1

    def _send(self, route: Route, frames: Frames) -> None:
        self._gate.send(route, [self._stamps.next(), *frames])

    def _send_if(self, wanted: Callable[[], bool], route: Route, frames: Frames) -> None:
        if wanted():
            self._send(route, frames)

    def _transmit(self, route: Route, frames: Frames) -> None:
        dealer = self._dealers.get(route)
        size = sum(map(len, frames)) - STAMP_BYTES
        try:
            if size > self._max_bytes:
                raise WireError(
                    "a control message is larger than a peer takes",
                    f"{size} bytes, the limit is {self._max_bytes}",
                    "raise control.max_message_bytes on both sides",
                )
            if dealer is not None:
                dealer.send_multipart(frames, zmq.NOBLOCK, copy=False)
            elif self._router is not None:
                self._router.send_multipart([route, *frames], zmq.NOBLOCK, copy=False)
            else:
                self.counts["undeliverable"] += 1
                return
            self.sent += 1
        except (zmq.ZMQError, WireError) as error:
            self._count("undeliverable", route, error)

    def _guarded(self, what: str, action: Callable[[], None], sender: bytes = b"this process") -> None:
        name = sender.decode("ascii", "backslashreplace")
        try:
            action()
        except PDCoreError as error:
            self.counts["refused"] += 1
            self._complaints.about(f"{what} {name}", f"{what}, peer {name}: {error}")
        # One peer's message must never end the thread that serves all of them.
        except Exception as error:
            self.counts["errors"] += 1
            self._complaints.about(f"{what} {name}", f"handling a {what} failed, peer {name}", error)

    def _count(self, what: str, route: Route, error: Exception) -> None:
        self.counts[what] += 1
        name = route.decode("ascii", "backslashreplace")
        self._complaints.about(f"{what} {name}", f"{what} message, peer {name}: {error}")

    def _refused(self, route: Route, error: AuthenticationError, final: bool) -> None:
        self._count("unauthenticated", route, error)
        if final and self._on_refused is not None:
            self._guarded("refusal", partial(self._on_refused, route, error), route)

    def _dial(self, route: Route) -> None:
        if route in self._dealers:
            return
        dealer = self._socket(zmq.DEALER)
        dealer.setsockopt(zmq.IDENTITY, self._identity)
        dealer.connect(f"tcp://{route.decode()}")
        self._dealers[route] = dealer
        self._routes[dealer] = route
        self._poller.register(dealer, zmq.POLLIN)
        self._gate.dialled(route)

    def _hang_up(self, route: Route) -> None:
        dealer = self._dealers.pop(route, None)
        if dealer is not None:
            self._poller.unregister(dealer)
            del self._routes[dealer]
            self._stamps.forget(route)
            self._gate.forget(route)
            dealer.close(linger=0)

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        socket.setsockopt(zmq.MAXMSGSIZE, self._max_bytes)
        socket.setsockopt(zmq.LINGER, 1000)
        return socket

    def _release(self) -> None:
        for socket in (self._router, *self._dealers.values()):
            if socket is not None:
                socket.close()
        self._context.term()
        with self._waking:
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1
