"""The connections of an HTTP service: how many there are, and how long each may take."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from enum import Enum

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pdcore.bootstrap.http.limits import Limits
from pdcore.bootstrap.http.refusal import Refusal, refuse
from pdcore.model import Clock
from pdcore.wire.complaints import COMPLAINT_SECONDS, Complaints

__all__ = ["ConnectionStage", "Connections"]

TOO_LONG = "a request is too long"
IN_PARTS = "send less at once, one request at a time, and each in one go"
SWEEP_SECONDS = 0.25
READ_BYTES = 64 * 1024
LINGER_BYTES = 2**20
"""What is still read, and thrown away, of one whose request was refused: else it would not see why."""


class ConnectionStage(Enum):
    """What a connection is at."""

    ARRIVING = "its request is not there in full"
    SERVING = "its request is being answered"
    IDLE = "it is between two requests"
    REFUSED = "it was told why it is ended"


class HeldConnection(asyncio.BufferedProtocol):
    """Stands before aiohttp's protocol, and counts what passes.

    All read into one buffer: asyncio's own are of 256 KiB, which a crowd of short requests would fragment.
    """

    def __init__(self, inner: asyncio.Protocol, all_of_them: Connections) -> None:
        self.inner = inner
        self.stage = ConnectionStage.ARRIVING
        self.received = 0
        self.since = 0.0
        self.stuck_since: float | None = None
        self.transport: asyncio.Transport | None = None
        self._all = all_of_them

    @property
    def peer(self) -> str:
        """The host at the other end."""
        name = self.transport.get_extra_info("peername") if self.transport is not None else None
        return str(name[0]) if name else "unknown"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand it on if there is room."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.inner.connection_made(transport)
        self._all.made(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        """Return where the next bytes go."""
        return self._all.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on what came unless it is more than a request may have."""
        data, limits = bytes(memoryview(self._all.buffer)[:nbytes]), self._all.limits
        if self.stage is ConnectionStage.IDLE:
            self._all.enter(self, ConnectionStage.ARRIVING)
        self.received += len(data)
        if self.stage is ConnectionStage.ARRIVING and not self._all.take(self, len(data)):
            return
        if self.stage is ConnectionStage.REFUSED:
            if self.received > LINGER_BYTES:
                self.abort()
        elif self.received > limits.request_bytes:
            limit = f"the limit is {limits.header_bytes} + {limits.body_bytes} bytes"
            self._all.refuse(self, 413, TOO_LONG, limit)
        else:
            self.inner.data_received(data)

    def answered(self) -> None:
        """What comes from now on is another request."""
        self.received = 0

    def abort(self) -> None:
        """End it now."""
        if self.transport is not None:
            self.transport.abort()

    def eof_received(self) -> bool | None:
        """Hand it on."""
        return self.inner.eof_received()

    def pause_writing(self) -> None:
        """The other side does not read its answer."""
        self.stuck_since = self._all.clock()
        self.inner.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        self.stuck_since = None
        self.inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        """Hand it on and forget it."""
        self._all.lost(self)
        self.inner.connection_lost(error)


class Connections:
    """All of them, by what they are at, those that are at it for the longest time first.

    Belongs to the service's loop. ``counts`` says how many were ended: as ``slow``, as ``oversized``, and as
    ``crowded`` out by one that came later. The logger is told of it once in a while.
    """

    def __init__(self, limits: Limits, clock: Clock, counts: Counter[str], logger: logging.Logger) -> None:
        self.limits, self.clock, self.counts = limits, clock, counts
        self._at: dict[ConnectionStage, dict[HeldConnection, None]] = {stage: {} for stage in ConnectionStage}
        self._by_inner: dict[object, HeldConnection] = {}
        self._name, self._complaints = logger.name, Complaints(logger, COMPLAINT_SECONDS)
        self._held = limits.held
        self._arriving = 0  # bytes
        self.buffer = bytearray(READ_BYTES)
        self._sweeping: asyncio.TimerHandle | None = None

    def start(self, make: Callable[[], asyncio.Protocol]) -> Callable[[], HeldConnection]:
        """Return what makes the protocol of a new connection around aiohttp's, and begin to look at them."""
        self._sweep()
        return lambda: HeldConnection(make(), self)

    @property
    def log(self) -> logging.Logger:
        """Where aiohttp logs: one line about the same trouble in a while, for strangers cause it."""
        log = logging.Logger(f"{self._name}.http")
        log.addFilter(self._said)
        return log

    def _said(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        self._complaints.about(record.getMessage(), f"{record.getMessage()}: {error!r}"[:200])
        return False

    def stop(self) -> None:
        """Look at them no more."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None

    @property
    def middleware(self) -> Middleware:
        """What aiohttp passes every request through, before all others: it reads the body."""

        @web.middleware
        async def follow(request: web.Request, handler: Handler) -> web.StreamResponse:
            connection = self._by_inner.get(request.protocol)
            if connection is None:  # it is lost already
                return await handler(request)
            self.enter(connection, ConnectionStage.ARRIVING)
            try:
                await request.read()  # which keeps it for who asks next
                self.enter(connection, ConnectionStage.SERVING)
                return await handler(request)
            except ConnectionError as error:
                # The request refers to it, and by its frames it to the body: one more life of that, else.
                error.__traceback__ = None
                return refuse(400, "the connection was lost", str(error), "try again")
            except web.HTTPRequestEntityTooLarge:
                self.counts["oversized"] += 1
                return refuse(413, TOO_LONG, f"the limit is {self.limits.body_bytes} bytes", IN_PARTS)
            finally:
                self.enter(connection, ConnectionStage.IDLE)
                connection.answered()

        return follow

    def made(self, connection: HeldConnection) -> None:
        """Note a new connection; the one that is the least missed makes room for it."""
        connection.since = self.clock()
        self._by_inner[connection.inner] = connection
        if len(self._by_inner) > self._held:
            self._make_room(connection)
        if connection.inner in self._by_inner:
            self._at[connection.stage][connection] = None

    def take(self, connection: HeldConnection, nbytes: int) -> bool:
        """Count what arrived; those that take the longest make room for it. False if it is one of them."""
        arriving = self._at[ConnectionStage.ARRIVING]
        if connection not in arriving:
            return False
        self._arriving += nbytes
        while self._arriving > self.limits.arriving_bytes:
            self._crowd_out(next(iter(arriving)), "requests that are not there in full hold too many bytes")
        return connection in arriving

    def lost(self, connection: HeldConnection) -> None:
        """Forget a connection."""
        self._by_inner.pop(connection.inner, None)
        self._remove(connection)

    def _remove(self, connection: HeldConnection) -> bool:
        known = self._at[connection.stage].pop(connection, connection) is None
        if known and connection.stage is ConnectionStage.ARRIVING:
            self._arriving -= connection.received
        return known

    def enter(self, connection: HeldConnection, stage: ConnectionStage) -> None:
        """Note what a connection is at from now on, unless it is so or has ended."""
        if connection.stage not in (stage, ConnectionStage.REFUSED) and self._remove(connection):
            connection.stage, connection.since = stage, self.clock()
            self._at[stage][connection] = None
            if stage is ConnectionStage.ARRIVING:
                self._arriving += connection.received

    def refuse(self, connection: HeldConnection, status: int, happened: str, there_is: str) -> None:
        """End a connection that sends what is no request, and tell it why unless an answer is under way."""
        self.counts["slow" if status == 408 else "oversized"] += 1
        self._complain(connection, f"{happened}, {there_is}")
        transport = connection.transport
        under_way = connection.stage is ConnectionStage.SERVING or connection.stuck_since is not None
        if transport is None or transport.is_closing() or under_way:
            connection.abort()
            return
        body = msgspec.json.encode(Refusal(happened, there_is, IN_PARTS))
        head = f"HTTP/1.1 {status} Refused\r\nConnection: close\r\nContent-Type: application/json\r\n"
        transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        transport.write_eof()
        self.enter(connection, ConnectionStage.REFUSED)

    def _make_room(self, newcomer: HeldConnection) -> None:
        # Of a crowd that says nothing, and one that rests between two requests, the larger: so a stranger
        # can neither hold all places nor keep those who come from speaking.
        crowds = sorted((self._at[s] for s in (ConnectionStage.ARRIVING, ConnectionStage.IDLE)), key=len)
        victim = next(iter(self._at[ConnectionStage.REFUSED] or crowds[1]), newcomer)
        self._crowd_out(victim, f"{self._held} connections are held, and one more came")

    def _crowd_out(self, connection: HeldConnection, why: str) -> None:
        self.counts["crowded"] += 1
        self._complain(connection, why)
        connection.abort()
        self.lost(connection)

    def _sweep(self) -> None:
        limits, now = self.limits, self.clock()
        for connection in list(self._by_inner.values()):
            if connection.transport is None or connection.transport.is_closing():
                continue
            if connection.stuck_since is not None and connection.stuck_since < now - limits.request_seconds:
                self.counts["slow"] += 1
                self._complain(connection, "it does not read its answer")
                connection.abort()
        for connection in self._older(ConnectionStage.ARRIVING, now - limits.request_seconds):
            if connection.transport is None or connection.transport.is_closing():
                continue  # it is counted, and as good as gone
            limit = f"it is not there {limits.request_seconds:g} s after it began"
            self.refuse(connection, 408, "a request takes too long", limit)
        for stage, seconds in (
            (ConnectionStage.SERVING, limits.answer_seconds),
            (ConnectionStage.IDLE, limits.idle_seconds),
            (ConnectionStage.REFUSED, limits.request_seconds),
        ):
            for connection in self._older(stage, now - seconds):
                connection.abort()
        self._sweeping = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep)

    def _older(self, stage: ConnectionStage, than: float) -> list[HeldConnection]:
        found = []
        for connection in self._at[stage]:
            if connection.since >= than:
                break
            found.append(connection)
        return found

    def _complain(self, connection: HeldConnection, what: str) -> None:
        self._complaints.about(
            f"{connection.peer} {what[:20]}", f"ended a connection of {connection.peer}: {what}"
        )
