"""The sockets of one channel: how they are made, which peer each belongs to, and what is polled."""

from __future__ import annotations

import math
import select
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import NewType

import attrs
import zmq

from pdcore.errors import BootstrapError, WireError
from pdcore.host.address import join
from pdcore.wire.access.curve import CURVE_OVERHEAD_BYTES, Curve
from pdcore.wire.access.greeting import Greeting
from pdcore.wire.frames import Frames, readable, receive_frames, send_frames
from pdcore.wire.monitor import ConnectionEvent, Monitor
from pdcore.wire.pieces import PIECE_BYTES
from pdcore.wire.wakeup import Wakeup

__all__ = ["HANDSHAKE_SECONDS", "Route", "Sockets", "place"]

Route = NewType("Route", bytes)
"""Names one peer of a channel: the identity with which it dialled us, or one connection that was dialled:
``host:port``, and after a # what tells it from others to the same place."""

HANDSHAKE_SECONDS = 10.0
"""So long may one that dialled us take to say who it is, without being let in."""

_HIGH_WATER = 100_000
_MOST_SOCKETS = 16_384
"""Of one context; libzmq's default is 1,023, and a dialled peer takes three: one to talk, two to watch it."""
LEAST_PATIENCE = 1.0
"""Seconds that the other side has to answer at least: cutting a connection loses what is on it."""
STANDSTILLS = 3
"""A machine that is gone acknowledges nothing: the kernel cuts its connections. A process whose kernel does
and whose libzmq does not answer is short of CPU or of memory, or frozen: it has so many times as long."""
_MOST_MILLISECONDS = 2**31 - 1
"""What an option of libzmq takes."""
PINGS = 4
"""How often libzmq is asked in that time; it answers on a thread of its own, which needs no interpreter."""


@attrs.frozen(eq=False)
class _Line:
    """One socket, what tells of its connections, and whom it was dialled to (None: it is bound)."""

    socket: zmq.Socket[bytes]
    monitor: Monitor
    route: Route | None


class Sockets:
    """One ROUTER at most, a DEALER per dialled peer, and a descriptor that is polled with them.

    Belongs to the owner thread of the channel, but that any thread may ``send``; ``bind`` comes before that
    thread starts. The ``lock`` guards the ROUTER, the DEALERs, ``_dialled``, ``_bound`` and ``closed``: who
    sends has it. libzmq tells of a socket by a descriptor that is readable when something has changed, and
    not any more once it was looked at, by sending as well: what was seen then is ``stirred``.

    ``identity`` is the one under which peers are dialled. With ``curve`` only who has the key gets through
    the handshake, either way; until then, and of each frame, a peer makes us hold no more than a piece. One
    whose machine does not answer for ``dead_after`` seconds is cut off, and one that does not answer itself
    for STANDSTILLS times as long (0: neither).
    """

    def __init__(self, identity: bytes, curve: Curve | None, wakeup: Wakeup, dead_after: float = 0.0) -> None:
        self._identity, self._curve = identity, curve
        milliseconds = math.ceil(1000 * max(LEAST_PATIENCE, dead_after))
        self._patience = min(milliseconds, _MOST_MILLISECONDS // STANDSTILLS) if dead_after else 0
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, _MOST_SOCKETS)
        self._bound: _Line | None = None
        self._dialled: dict[Route, _Line] = {}
        self._lines: dict[zmq.Socket[bytes], _Line] = {}
        self._monitored: dict[zmq.Socket[bytes], _Line] = {}
        self._asking: dict[Route, Greeting] = {}
        self.lock = threading.Lock()
        self.closed = False
        """Whether ``close`` was called."""
        self.stirred: deque[zmq.Socket[bytes]] = deque()
        """Sockets to be looked at although their descriptors may tell of nothing."""
        self._poller = select.poll()
        self._poller.register(wakeup.descriptor, select.POLLIN)
        self._wakeup = wakeup
        self._polled: dict[int, zmq.Socket[bytes]] = {}

    def bind(self, host: str, port: int) -> str:
        """Bind the ROUTER and return its address; ``host`` has no brackets.

        Raises:
            BootstrapError: the port is in use or the host is not an address of this machine.
        """
        router = self._socket(zmq.ROUTER)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.ROUTER_HANDOVER, 1)
        router.setsockopt(zmq.HANDSHAKE_IVL, int(HANDSHAKE_SECONDS * 1000))
        if self._curve is not None:
            self._curve.guard(router)
        line = self._poll(router, None)
        try:
            router.setsockopt(zmq.IPV6, int(":" in host))
            router.bind(f"tcp://{join(host, port or '*')}")
        except zmq.ZMQError as error:
            self._drop(line)
            raise BootstrapError(
                f"the control port {join(host, port)} cannot be bound",
                error.strerror or str(error),
                "choose a free port (0 takes any) and an address of this machine: control.port, host",
            ) from error
        self._bound = line
        bound = router.getsockopt_string(zmq.LAST_ENDPOINT)
        return join(host, bound.rpartition(":")[2])

    def dial(self, route: Route) -> None:
        """Connect to a bound channel without waiting, unless that was done before.

        Raises:
            WireError: this process has no descriptors left, or the address is none.
        """
        if route in self._dialled:
            return
        name = place(route)
        line: _Line | None = None
        try:
            line = self._poll(self._socket(zmq.DEALER), route)
            line.socket.setsockopt(zmq.IDENTITY, self._identity)
            line.socket.setsockopt(zmq.IPV6, int(route.startswith(b"[")))
            if self._curve is not None:
                self._curve.introduce(line.socket)
            line.socket.connect(f"tcp://{name}")
        except zmq.ZMQError as error:
            if line is not None:
                self._drop(line)
            raise WireError(
                f"peer {name} cannot be dialled",
                error.strerror or str(error),
                "raise the limit of open files (ulimit -n) if there are too many, or look at the address",
            ) from error
        with self.lock:
            self._dialled[route] = line

    def hang_up(self, route: Route) -> bool:
        """Drop a dialled connection and what was not sent on it; return whether there was one."""
        with self.lock:
            line = self._dialled.pop(route, None)
        if line is None:
            return False
        self._drop(line)
        self.stop_asking(route)
        return True

    def ask(self, route: Route) -> None:
        """Ask a dialled peer which mechanism it speaks, beside the connection; never waits.

        Without a descriptor to do it with nobody is asked, until this is called again.
        """
        self.stop_asking(route)
        with suppress(zmq.ZMQError):
            self._asking[route] = greeting = Greeting(self._context, f"tcp://{place(route)}")
            self._watch(greeting.socket)

    def stop_asking(self, route: Route) -> None:
        """Forget a question that was not answered, if there is one."""
        greeting = self._asking.pop(route, None)
        if greeting is not None:
            self._unwatch(greeting.socket)
            greeting.socket.close()

    def asked(self, socket: zmq.Socket[bytes]) -> tuple[Route, Greeting] | None:
        """Return the question that a polled socket belongs to, and of whom it is asked."""
        return next(((r, g) for r, g in self._asking.items() if g.socket is socket), None)

    def send(self, route: Route, frames: Frames) -> bool:
        """Send without waiting, from any thread that has the lock; False if the peer was not dialled and
        nothing is bound.

        Raises:
            zmq.ZMQError: the peer is not connected, or takes nothing more at present.
        """
        line = self._dialled.get(route)
        if line is None:
            line, frames = self._bound, [route, *frames]
        if line is None:
            return False
        try:
            send_frames(line.socket, frames)
        finally:
            if readable(line.socket):
                self.stirred.append(line.socket)
        return True

    def wait(self, milliseconds: int) -> list[zmq.Socket[bytes]]:
        """Return the sockets at which there may be something, of those that are open."""
        ready = []
        for descriptor, _ in self._poller.poll(milliseconds):
            if descriptor == self._wakeup.descriptor:
                self._wakeup.heard()
            else:
                ready.append(self._polled[descriptor])
        while self.stirred:
            ready.append(self.stirred.popleft())
        return ready

    def receive(self, socket: zmq.Socket[bytes]) -> tuple[Route, list[zmq.Frame]] | None:
        """Return the next message and its sender; None if there is none or the socket was closed."""
        line = self._lines.get(socket)
        if line is None:
            return None
        with self.lock:
            # Asking costs a tenth of the exception by which an empty socket would answer.
            if not readable(socket):
                return None
            frames = receive_frames(socket)
        return line.route if line.route is not None else Route(frames.pop(0).bytes), frames

    def is_monitor(self, socket: zmq.Socket[bytes]) -> bool:
        """Whether a polled socket tells of connections; it has no messages then."""
        return socket in self._monitored

    def events(self, socket: zmq.Socket[bytes], most: int) -> Iterator[tuple[Route | None, ConnectionEvent]]:
        """Yield what a monitor tells, and of whom (None: of one that dialled us), until it is hung up."""
        line = self._monitored[socket]
        events = line.monitor.events(most)
        if len(events) == most:
            self.stirred.append(socket)
        for event in events:
            if socket in self._monitored:
                yield line.route, event

    def close(self) -> None:
        """Close all of them once what was sent is out, or a second has passed."""
        with self.lock:
            self.closed = True
            self._dialled.clear()
            self._bound = None
        for route in list(self._asking):
            self.stop_asking(route)
        for line in list(self._lines.values()):
            self._drop(line, linger=None)
        self._context.term()

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
        socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
        socket.setsockopt(zmq.MAXMSGSIZE, PIECE_BYTES + CURVE_OVERHEAD_BYTES)
        socket.setsockopt(zmq.LINGER, 1000)
        socket.setsockopt(zmq.TCP_MAXRT, self._patience)
        socket.setsockopt(zmq.HEARTBEAT_IVL, math.ceil(self._patience * STANDSTILLS / PINGS))
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, self._patience * STANDSTILLS)
        return socket

    def _poll(self, socket: zmq.Socket[bytes], route: Route | None) -> _Line:
        try:
            line = _Line(socket, Monitor(socket), route)
        except zmq.ZMQError:
            socket.close(linger=0)  # or the context would wait for it when it ends
            raise
        self._lines[socket] = self._monitored[line.monitor.socket] = line
        self._watch(socket)
        self._watch(line.monitor.socket)
        return line

    def _drop(self, line: _Line, linger: int | None = 0) -> None:
        self._unwatch(line.socket)
        self._unwatch(line.monitor.socket)
        del self._lines[line.socket], self._monitored[line.monitor.socket]
        with self.lock:
            line.monitor.close()
            line.socket.close(linger)

    def _watch(self, socket: zmq.Socket[bytes]) -> None:
        self._polled[socket.fileno()] = socket
        self._poller.register(socket.fileno(), select.POLLIN)
        self.stirred.append(socket)  # its making may have taken the sign that there is something

    def _unwatch(self, socket: zmq.Socket[bytes]) -> None:
        with self.lock:
            descriptor = socket.fileno()
        self._poller.unregister(descriptor)
        del self._polled[descriptor]


def place(peer: bytes) -> str:
    """Return who a route leads to, by whichever connection: ``host:port``, or the name of who dialled us."""
    return peer.partition(b"#")[0].decode("ascii", "backslashreplace")
