"""The bootstrap service: ranks register and renew, decode resolves, ``/health`` tells the truth."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from types import TracebackType
from typing import TypeVar

import attrs
import msgspec
from aiohttp import web

from pdcore.address import join, parse_advertised, parse_host
from pdcore.bootstrap.auth import CHALLENGE_PATH
from pdcore.bootstrap.doorkeeper import Doorkeeper, refuse
from pdcore.bootstrap.loop import LoopThread
from pdcore.bootstrap.record import RankGroup, RankRecord, ReplicaQuery, RoomsRecord
from pdcore.bootstrap.rooms import RoomRanks
from pdcore.errors import AddressError, BootstrapError
from pdcore.machine import find_place, listen
from pdcore.model import Clock, Deadline, Incarnation, RoomId
from pdcore.secret import AuthKey
from pdcore.secret import auth_key as to_auth_key
from pdcore.topology import DPChoice, dp_rank_of

__all__ = ["BootstrapServer"]

MAX_BODY_BYTES = 64 * 1024
MAX_RANKS = 65_536
MAX_REPLACED = 16
MAX_WAIT = 60.0
STALE_LEASES = 10
"""A rank that did not renew for this many leases is forgotten; until then health reports it."""
_START = 10.0


@attrs.frozen
class _Entry:
    record: RankRecord
    renewed_at: float
    replaced: tuple[Incarnation, ...] = ()


class BootstrapServer:
    """Serves on ``host:port`` (0: any free port) from the thread ``pdcore-bootstrap-server``.

    ``host`` and ``advertise`` are as in :class:`~pdcore.config.Config`. A context manager. ``address``, which
    prefill and decode dial, is known once it has started. With an ``auth_key`` it serves only who
    has it; ``counts`` says how many requests were turned away. All state belongs to its loop.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        advertise: str | None = None,
        auth_key: AuthKey | str | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._door = Doorkeeper(to_auth_key(auth_key), clock)
        self._host, self._port, self._clock = parse_host(host, "host"), _port(port), clock
        if advertise is not None:
            parse_advertised(advertise, "advertise")
        self._advertise = advertise
        self._ranks: dict[tuple[int, int], _Entry] = {}
        self._rooms = RoomRanks(clock)
        self._registered: asyncio.Condition | None = None
        self._runner: web.AppRunner | None = None
        self._listener: socket.socket | None = None
        self._loop: LoopThread | None = None
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
        """How many requests were ``unauthenticated``."""
        return self._door.counts

    def start(self) -> None:
        """Bind and serve.

        Raises:
            AddressError: the host is not an address of this machine, or none that peers can be told.
            BootstrapError: the port is in use.
        """
        place = find_place(self._host, self._advertise)
        self._loop = LoopThread("bootstrap-server")
        try:
            self._port = self._loop.call(self._serve(place.listens), Deadline.after(_START))
        except OSError as error:
            self.close()
            raise self._cannot_listen(error.strerror or str(error)) from error
        self.address = place.address(self._port)

    def close(self) -> None:
        """Stop serving and free the port; idempotent."""
        if self._loop is not None:
            deadline = Deadline.after(_START)
            if self._runner is not None:
                self._loop.call(_stop(self._runner, self._listener), deadline)
                self._runner = self._listener = None
            self._loop.close(deadline)
            self._loop = None

    def _cannot_listen(self, why: str) -> BootstrapError:
        return BootstrapError(
            f"the bootstrap service cannot listen on {join(self._host, self._port)}",
            why,
            "choose a free port (0 takes any) and an address of this machine",
        )

    async def _serve(self, host: str) -> int:
        self._registered = asyncio.Condition()
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._door.middleware])
        app.router.add_get(CHALLENGE_PATH, self._door.challenge)
        app.router.add_put("/v1/ranks", self._put)
        app.router.add_get("/v1/ranks", self._get)
        app.router.add_put("/v1/rooms", self._put_rooms)
        app.router.add_delete("/v1/ranks/{incarnation}", self._delete)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        self._listener = listen(host, self._port)
        await web.SockSite(self._runner, self._listener).start()
        return int(self._listener.getsockname()[1])

    async def _put(self, request: web.Request) -> web.Response:
        record = await _decoded(request, _RANK, "a rank registration")
        if isinstance(record, web.Response):
            return record
        if not 0 < record.lease <= 3600:
            return refuse(400, "a lease is out of range", f"{record.lease} s", "use 0 < lease <= 3600 s")
        key = (record.topology.dp_rank, record.topology.unique_rank)
        if key not in self._ranks and len(self._ranks) >= MAX_RANKS:
            return refuse(507, "too many ranks are registered", f"{MAX_RANKS}", "restart the service")
        old = self._ranks.get(key)
        replaced = old.replaced if old else ()
        if record.incarnation in replaced:
            return refuse(
                409,
                f"incarnation {record.incarnation[:8]} was replaced by a newer one of the same rank",
                f"{old.record.address if old else ''} is registered now",
                "end the older worker, or give it a rank of its own",
            )
        if old is not None and old.record.incarnation != record.incarnation:
            replaced = (*replaced[1 - MAX_REPLACED :], old.record.incarnation)
        self._ranks[key] = _Entry(record, self._clock(), replaced)
        return await self._changed()

    async def _put_rooms(self, request: web.Request) -> web.Response:
        record = await _decoded(request, _ROOMS, "a registration of rooms")
        if isinstance(record, web.Response):
            return record
        self._rooms.register(record.rooms, record.dp_rank)
        return await self._changed()

    async def _changed(self) -> web.Response:
        if self._registered is not None:
            async with self._registered:
                self._registered.notify_all()
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
        group = await self._complete_group(query, min(MAX_WAIT, wait) if wait > 0 else 0.0)
        if group is not None:
            return web.Response(body=msgspec.json.encode(group), content_type="application/json")
        dp_rank, fresh = self._dp_rank(query), sorted(self._fresh())
        if dp_rank is None:
            return refuse(
                404,
                f"nobody took room {query.room}",
                f"DP ranks {sorted({dp for dp, _ in fresh})} are registered",
                "have prefill call register_dp_rank(room), or start it",
            )
        return refuse(
            404,
            f"prefill DP rank {dp_rank} is not registered in full",
            f"unique ranks {[rank for dp, rank in fresh if dp == dp_rank]} of DP rank {dp_rank}, "
            f"DP ranks {sorted({dp for dp, _ in fresh})}",
            "start the missing prefill ranks, or ask for a DP rank that runs",
        )

    def _dp_rank(self, query: ReplicaQuery) -> int | None:
        if query.choice is DPChoice.QUERY:
            return self._rooms.of(query.room)
        if query.choice is DPChoice.BY_ROOM:
            sizes = [record.topology.dp_size for record in self._fresh().values()]
            return dp_rank_of(query.room, sizes[0]) if sizes else None
        return query.choice

    async def _complete_group(self, query: ReplicaQuery, wait: float) -> RankGroup | None:
        group, end = self._group(query), self._clock() + wait
        condition = self._registered
        while group is None and condition is not None and (left := end - self._clock()) > 0:
            try:
                async with condition:
                    await asyncio.wait_for(condition.wait(), left)
            except asyncio.TimeoutError:
                return self._group(query)
            group = self._group(query)
        return group

    def _group(self, query: ReplicaQuery) -> RankGroup | None:
        dp_rank = self._dp_rank(query)
        ranks = {rank: record for (dp, rank), record in self._fresh().items() if dp == dp_rank}
        size = max((r.topology.group_size for r in ranks.values()), default=0)
        # The length first: a stranger may claim a group of any size.
        if not size or len(ranks) != size or set(ranks) != set(range(size)):
            return None
        return RankGroup(tuple(ranks[rank] for rank in range(size)))

    def _fresh(self) -> dict[tuple[int, int], RankRecord]:
        now = self._clock()
        return {
            key: entry.record
            for key, entry in self._ranks.items()
            if now - entry.renewed_at <= entry.record.lease
        }

    async def _delete(self, request: web.Request) -> web.Response:
        incarnation = request.match_info["incarnation"]
        self._ranks = {k: e for k, e in self._ranks.items() if e.record.incarnation != incarnation}
        return web.Response(status=204)

    async def _health(self, _request: web.Request) -> web.Response:
        now = self._clock()
        self._ranks = {
            k: e for k, e in self._ranks.items() if now - e.renewed_at <= e.record.lease * STALE_LEASES
        }
        fresh = self._fresh()
        stale = [e.record.address for k, e in self._ranks.items() if k not in fresh]
        body = {"healthy": bool(fresh) and not stale, "ranks": len(fresh), "stale": stale}
        return web.json_response(body, status=200 if body["healthy"] else 503)


def _port(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65_535:
        return value
    raise AddressError(
        f"the port of the bootstrap service cannot be {str(value)[:80]!r}",
        "ports are 0 to 65535",
        "choose a free port; 0 takes any",
    )


async def _stop(runner: web.AppRunner, listener: socket.socket | None) -> None:
    if listener is not None:
        # asyncio loses a connection that it accepts in the turn in which its server closes: so stop
        # accepting first, and let those turns pass that make a connection known to the runner.
        asyncio.get_running_loop().remove_reader(listener.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
    await runner.cleanup()


_Record = TypeVar("_Record", RankRecord, RoomsRecord)
# Made at import: msgspec 0.22 crashes when two threads (services) are the first to decode a type.
_RANK, _ROOMS = msgspec.json.Decoder(RankRecord), msgspec.json.Decoder(RoomsRecord)


async def _decoded(
    request: web.Request, decoder: msgspec.json.Decoder[_Record], what: str
) -> _Record | web.Response:
    """Return the body as a record, or what to answer instead."""
    send = f"send a {decoder.type.__name__} as JSON"
    try:
        return decoder.decode(await request.read())
    except web.HTTPRequestEntityTooLarge:
        return refuse(413, f"{what} is too long", f"the limit is {MAX_BODY_BYTES} bytes", send)
    # A stranger's body runs our validators; whatever they raise is the sender's mistake.
    except Exception as error:
        return refuse(400, f"{what} is malformed", str(error), send)
