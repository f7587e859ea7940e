"""The client of the bootstrap service; all requests run concurrently on one loop thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging

import aiohttp
import msgspec

from pdcore.bootstrap.loop import LoopThread
from pdcore.bootstrap.record import RankGroup, RankRecord, Refusal, ReplicaQuery, RoomsRecord
from pdcore.errors import BootstrapError, LayoutError
from pdcore.model import Deadline, Incarnation

__all__ = ["BootstrapClient"]

_RETRY = 0.2
_NO_ANSWER = "no answer within the deadline"
_UNREACHED = (aiohttp.ClientError, OSError, asyncio.TimeoutError)
_log = logging.getLogger("pdcore.bootstrap")


class BootstrapClient:
    """Registers prefill ranks and resolves them. Owns the thread ``pdcore-<name>-http``."""

    def __init__(self, name: str) -> None:
        self._loop = LoopThread(f"{name}-http")
        self._session: aiohttp.ClientSession | None = None  # the loop's own, like _closed
        self._closed = False
        self._renewal: concurrent.futures.Future[None] | None = None

    def register(self, address: str, record: RankRecord, deadline: Deadline) -> None:
        """Register a rank, trying again until the deadline while the service is not up.

        Raises:
            BootstrapError: the service refused, or could not be reached in time.
        """
        try:
            # The coroutine keeps the deadline itself; waiting longer only guards against a stuck loop.
            self._loop.call(
                self._register(address, record, deadline), Deadline.after(deadline.remaining() + 1)
            )
        except TimeoutError as error:
            raise _unreachable(address, _NO_ANSWER) from error

    def renew(self, address: str, record: RankRecord) -> None:
        """Start renewing a lease unless a renewal is under way; never waits, failures are logged."""
        if self._renewal is None or self._renewal.done():
            self._renewal = self._loop.submit(self._renew(address, record))

    def register_rooms(self, address: str, record: RoomsRecord, seconds: float) -> None:
        """Start telling which DP rank took some rooms; never waits, failures are logged."""
        self._loop.submit(self._register_rooms(address, record, seconds))

    def resolve(
        self, address: str, query: ReplicaQuery, deadline: Deadline
    ) -> concurrent.futures.Future[RankGroup]:
        """Start looking up all ranks of a DP replica; the service waits for what is missing.

        The future raises BootstrapError.
        """
        return self._loop.submit(self._resolve(address, query, deadline))

    def withdraw(self, address: str, incarnation: Incarnation, deadline: Deadline) -> None:
        """Take a registration back; failing to is logged, the lease ends it then."""
        try:
            self._loop.call(self._withdraw(address, incarnation), deadline)
        except _UNREACHED as error:
            _log.info("could not withdraw from the bootstrap service at %s: %s", address, error)

    def close(self, deadline: Deadline) -> None:
        """End all requests and the thread; idempotent."""
        if not self._closed:
            self._loop.call(self._end(), deadline)
        self._loop.close(deadline)

    async def _register(self, address: str, record: RankRecord, deadline: Deadline) -> None:
        while True:
            try:
                return await self._put(address, "ranks", record, deadline.remaining())
            except _UNREACHED as error:
                if deadline.remaining() <= _RETRY:
                    raise _unreachable(address, str(error) or _NO_ANSWER) from error
                await asyncio.sleep(_RETRY)

    async def _renew(self, address: str, record: RankRecord) -> None:
        try:
            await self._put(address, "ranks", record, record.lease)
        except (BootstrapError, *_UNREACHED) as error:
            _log.warning("could not renew the lease at the bootstrap service %s: %s", address, error)

    async def _register_rooms(self, address: str, record: RoomsRecord, seconds: float) -> None:
        try:
            await self._put(address, "rooms", record, seconds)
        except (BootstrapError, *_UNREACHED) as error:
            _log.warning("could not register rooms at the bootstrap service %s: %s", address, error)

    async def _put(self, address: str, what: str, record: RankRecord | RoomsRecord, seconds: float) -> None:
        url, body, limit = f"http://{address}/v1/{what}", msgspec.json.encode(record), _limit(seconds)
        async with self._http().put(url, data=body, timeout=limit) as response:
            if response.status != 204:
                raise _refused(address, response.status, await response.read())

    async def _resolve(self, address: str, query: ReplicaQuery, deadline: Deadline) -> RankGroup:
        trouble = _NO_ANSWER
        while (left := deadline.remaining()) > 0:
            try:
                return await self._ask(address, query, left)
            except _UNREACHED as error:
                trouble = str(error) or trouble
                await asyncio.sleep(min(_RETRY, deadline.remaining()))
        raise _unreachable(address, trouble)

    async def _ask(self, address: str, query: ReplicaQuery, seconds: float) -> RankGroup:
        parameters = {**query.parameters, "wait": f"{seconds:.3f}"}
        # The service answers when its own wait ends; the client's clock only guards against silence.
        url, limit = f"http://{address}/v1/ranks", _limit(seconds + 1)
        async with self._http().get(url, params=parameters, timeout=limit) as response:
            body = await response.read()
            if response.status != 200:
                raise _refused(address, response.status, body)
            try:
                return msgspec.json.decode(body, type=RankGroup)
            except (msgspec.DecodeError, LayoutError) as error:
                raise _refused(address, response.status, body) from error

    async def _withdraw(self, address: str, incarnation: Incarnation) -> None:
        async with self._http().delete(f"http://{address}/v1/ranks/{incarnation}"):
            pass

    async def _end(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()

    def _http(self) -> aiohttp.ClientSession:
        if self._closed:
            raise aiohttp.ClientConnectionError("this client is closed")
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session


def _limit(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=max(seconds, 0.001))


def _refused(address: str, status: int, body: bytes) -> BootstrapError:
    try:
        refusal = msgspec.json.decode(body, type=Refusal)
    except msgspec.DecodeError:
        refusal = Refusal(
            "the bootstrap service answered strangely",
            f"HTTP {status}, {body[:80]!r}",
            "check that the address is a pdcore bootstrap service",
        )
    return BootstrapError(
        f"{refusal.happened} (bootstrap service {address})", refusal.there_is, refusal.to_do
    )


def _unreachable(address: str, trouble: str) -> BootstrapError:
    return BootstrapError(
        f"the bootstrap service at {address} cannot be reached",
        trouble,
        "check the address and that the prefill side's bootstrap service runs",
    )
