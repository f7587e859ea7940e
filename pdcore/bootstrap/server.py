"""The bootstrap service: ranks register and renew, decode resolves, ``/health`` tells the truth."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable
from types import TracebackType
from typing import TypeVar

import msgspec
from aiohttp import web

from pdcore.arguments import callables, instance
from pdcore.bootstrap.access import Access
from pdcore.bootstrap.auth import CHALLENGE_PATH
from pdcore.bootstrap.http.connections import Connections
from pdcore.bootstrap.http.limits import Limits
from pdcore.bootstrap.http.loop import LoopThread
from pdcore.bootstrap.http.refusal import refuse
from pdcore.bootstrap.http.site import Site
from pdcore.bootstrap.lookup import Lookup
from pdcore.bootstrap.ranks import Ranks, Refused
from pdcore.bootstrap.record import RankGroup, RankRecord, ReplicaQuery, RoomsRecord
from pdcore.bootstrap.rooms import RoomRanks
from pdcore.bootstrap.waiting import Waiting
from pdcore.config.auth_key import AuthKey
from pdcore.config.auth_key import auth_key as to_auth_key
from pdcore.errors import AddressError, BootstrapError
from pdcore.host.address import join, parse_advertised, parse_host
from pdcore.host.fork import Birthplace
from pdcore.host.machine import find_place
from pdcore.host.shortage import require_descriptors
from pdcore.model import Clock, Deadline, RoomId
from pdcore.pairing.topology import DPChoice

__all__ = ["BootstrapServer"]

_START = 10.0
_DESCRIPTORS = 12

_log = logging.getLogger("pdcore.bootstrap")


class BootstrapServer:
    """Serves on ``host:port`` (0: any free port) from the thread ``pdcore-bootstrap-server``.

    ``host`` and ``advertise`` are as in :class:`~pdcore.Config`. A context manager. ``address``, which
    prefill and decode dial, is known once it has started. With an ``auth_key`` it serves only who has it;
    ``limits`` holds for everybody. All state belongs to its loop.

    Raises:
        AddressError: ``host``, ``port`` or ``advertise`` cannot be one.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        advertise: str | None = None,
        auth_key: AuthKey | str | None = None,
        clock: Clock = time.monotonic,
        limits: Limits | None = None,
    ) -> None:
        self._host, self._port, self._clock = parse_host(host, "host"), _port(port), clock
        if advertise is not None:
            parse_advertised(advertise, "advertise")
        self._advertise = advertise
        self._limits = Limits() if limits is None else limits
        instance("the limits of a bootstrap service", self._limits, Limits, "hand in Limits(...)")
        callables("the clock of a bootstrap service", (clock,))
        self._access = Access(to_auth_key(auth_key), clock)
        self._connections = Connections(self._limits, clock, self._access.counts, _log)
        self._site = Site(self._connections)
        self._ranks = Ranks(clock, self._limits.ranks)
        self._rooms = RoomRanks(clock, self._limits.rooms)
        self._waiting = Waiting(self._limits.waiting)
        self._lookup = Lookup(self._ranks, self._rooms, self._waiting, self._limits, clock)
        self._loop: LoopThread | None = None
        self._birthplace = Birthplace()
        self.address = ""

    def __enter__(self) -> BootstrapServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def counts(self) -> Counter[str]:
        """How many were ``unauthenticated``, ``slow`` or ``oversized`` requests, or ``crowded`` out."""
        return self._access.counts

    def start(self) -> None:
        """Bind and serve.

        Raises:
            AddressError: the host is not an address of this machine, or none that peers can be told.
            BootstrapError: the port is in use, or too few file descriptors are free.
        """
        if self._loop is not None:
            self._birthplace.require("a bootstrap service")
        self._birthplace = Birthplace(self)
        require_descriptors(_DESCRIPTORS, "to start the bootstrap service", BootstrapError)
        place = find_place(self._host, self._advertise)
        self._loop = LoopThread("bootstrap-server")
        try:
            self._port = self._loop.call(self._serve(place.listens), Deadline.after(_START))
        except OSError as error:
            self.close()
            raise self._cannot_listen(error.strerror or str(error)) from error
        self.address = place.address(self._port)

    def close(self) -> None:
        """Stop serving and free the port; idempotent. Nothing in a forked child."""
        if self._loop is not None and not self._birthplace.left:
            deadline = Deadline.after(_START)
            self._loop.call(self._site.close(), deadline)
            self._loop.close(deadline)
            self._loop = None

    def _cannot_listen(self, why: str) -> BootstrapError:
        return BootstrapError(
            f"the bootstrap service cannot listen on {join(self._host, self._port)}",
            why,
            "choose a free port (0 takes any) and an address of this machine",
        )

    async def _serve(self, host: str) -> int:
        limits = self._limits
        app = web.Application(
            client_max_size=limits.body_bytes,
            middlewares=[self._connections.middleware, self._access.middleware],
        )
        app.router.add_get(CHALLENGE_PATH, self._access.challenge)
        app.router.add_put("/v1/ranks", self._put)
        app.router.add_get("/v1/ranks", self._get)
        app.router.add_get("/v1/ranks/any", self._get_any)
        app.router.add_put("/v1/rooms", self._put_rooms)
        app.router.add_delete("/v1/ranks/{incarnation}", self._delete)
        app.router.add_get("/health", self._health)
        return await self._site.open(app, host, self._port)

    async def _put(self, request: web.Request) -> web.Response:
        record = await _decoded(request, _RANK, "a rank registration")
        if isinstance(record, web.Response):
            return record
        try:
            self._ranks.put(record)
        except Refused as refused:
            return _refuse(refused)
        self._lookup.told(record)
        return web.Response(status=204)

    async def _put_rooms(self, request: web.Request) -> web.Response:
        record = await _decoded(request, _ROOMS, "a registration of rooms")
        if isinstance(record, web.Response):
            return record
        self._rooms.register(record.rooms, record.dp_rank)
        for room in record.rooms:
            self._waiting.tell((DPChoice.QUERY, room))
        return web.Response(status=204)

    async def _get(self, request: web.Request) -> web.Response:
        asked = request.query
        try:
            wait = float(asked.get("wait", "0"))
            choice = DPChoice(asked["choice"]) if "choice" in asked else int(asked.get("dp_rank", "0"))
            query = ReplicaQuery(choice, RoomId(int(asked.get("room", "0"))))
        except ValueError as error:
            to_do = "send dp_rank=INT&wait=SECONDS, or room=INT&choice=by_room|query&wait=SECONDS"
            return refuse(400, "a rank query is malformed", str(error), to_do)
        return await _answer(self._lookup.group(query, wait))

    async def _get_any(self, request: web.Request) -> web.Response:
        try:
            wait = float(request.query.get("wait", "0"))
        except ValueError as error:
            return refuse(400, "a query for any rank is malformed", str(error), "send wait=SECONDS")
        return await _answer(self._lookup.any(wait))

    async def _delete(self, request: web.Request) -> web.Response:
        self._ranks.withdraw(request.match_info["incarnation"])
        return web.Response(status=204)

    async def _health(self, _request: web.Request) -> web.Response:
        fresh, stale = self._ranks.health()
        body = {"healthy": bool(fresh) and not stale, "ranks": fresh, "stale": stale}
        return web.json_response(body, status=200 if body["healthy"] else 503)


def _port(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65_535:
        return value
    raise AddressError(
        f"the port of the bootstrap service cannot be {str(value)[:80]!r}",
        "ports are 0 to 65535",
        "choose a free port; 0 takes any",
    )


async def _answer(found: Awaitable[RankGroup | RankRecord]) -> web.Response:
    """Return what was found as JSON, or why it was not."""
    try:
        return web.Response(body=msgspec.json.encode(await found), content_type="application/json")
    except Refused as refused:
        return _refuse(refused)


def _refuse(refused: Refused) -> web.Response:
    said = refused.refusal
    return refuse(refused.status, said.happened, said.there_is, said.to_do)


_Record = TypeVar("_Record", RankRecord, RoomsRecord)
# Made at import: msgspec 0.22 crashes when two threads (services) are the first to decode a type.
_RANK, _ROOMS = msgspec.json.Decoder(RankRecord), msgspec.json.Decoder(RoomsRecord)


async def _decoded(
    request: web.Request, decoder: msgspec.json.Decoder[_Record], what: str
) -> _Record | web.Response:
    """Return the body as a record, or what to answer instead."""
    try:
        return decoder.decode(await request.read())
    # A stranger's body runs our validators; whatever they raise is the sender's mistake.
    except Exception as error:
        to_do = f"send a {decoder.type.__name__} as JSON"
        return refuse(400, f"{what} is malformed", str(error), to_do)
