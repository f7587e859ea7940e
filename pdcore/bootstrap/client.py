"""The client of the bootstrap service; all requests run concurrently on one loop thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar
from urllib.parse import urlencode

import aiohttp
import attrs
import msgspec

from pdcore.bootstrap.attempts import A_WHILE, NO_ANSWER, Attempts
from pdcore.bootstrap.http.loop import LoopThread
from pdcore.bootstrap.names import dialable
from pdcore.bootstrap.record import CROWDED, RankGroup, RankRecord, ReplicaQuery, RoomsRecord
from pdcore.bootstrap.requests import SignedRequests, refused
from pdcore.config.auth_key import AuthKey
from pdcore.errors import BootstrapError, ForkedError, PDCoreError
from pdcore.model import Deadline, Incarnation

__all__ = ["BootstrapClient"]

ROOMS_AT_ONCE = 1000
_RETRY = 0.2
_MOMENT = 1.0
_WITHDRAW = 60.0


class _ServerBusy(Exception):  # noqa: N818 - it asks again
    """The service serves others just now."""


_UNREACHED = (aiohttp.ClientError, OSError, asyncio.TimeoutError, _ServerBusy)
# Made at import: msgspec 0.22 crashes when two threads (clients) are the first to decode a type.
_read_group = msgspec.json.Decoder(RankGroup).decode
_read_rank = msgspec.json.Decoder(RankRecord).decode
Record = TypeVar("Record")
_log = logging.getLogger("pdcore.bootstrap")


class BootstrapClient:
    """Registers prefill ranks and resolves them. Owns the thread ``pdcore-<name>-http``.

    Attempts that fail count as one row as long as no more than ``pause`` seconds lie between two.
    """

    def __init__(self, name: str, auth_key: AuthKey | None = None, pause: float = A_WHILE) -> None:
        self._loop = LoopThread(f"{name}-http")
        self._requests = SignedRequests(auth_key)  # the loop's own
        self._attempts = Attempts(pause=pause)
        self._closed = False
        self._leaving = False
        self._renewal: concurrent.futures.Future[None] | None = None

    def register(self, address: str, record: RankRecord, deadline: Deadline) -> None:
        """Register a rank, trying again until the deadline while the service is not up.

        Raises:
            BootstrapError: the service refused, or could not be reached in time.
            AuthenticationError: it requires a key, has none, or has another.
        """
        try:
            # The coroutine keeps the deadline itself; waiting longer only guards against a stuck loop.
            self._loop.call(
                self._keep_putting(address, "ranks", record, deadline),
                Deadline.after(deadline.remaining() + 1),
            )
        except TimeoutError as error:
            raise self._unreachable(address) from error

    def trouble(self, address: str) -> str:
        """Return how often in a row a service was not reached and why; "" if the last request reached it."""
        return self._attempts.told(address)

    def renew(self, address: str, record: RankRecord, heard: Callable[[Exception | None], None]) -> None:
        """Start renewing a lease, unless a renewal is under way; never waits.

        ``heard`` is called on the client's thread with what kept it from that, or with None.
        """
        if not self._leaving and (self._renewal is None or self._renewal.done()):
            self._renewal = self._loop.submit(self._renew(address, record, heard))

    def register_rooms(self, address: str, record: RoomsRecord, seconds: float) -> None:
        """Start telling which DP rank took some rooms; never waits.

        It is tried again for so many seconds while the service is not up. Failures are logged.
        """
        self._loop.submit(self._register_rooms(address, record, seconds))

    def resolve(
        self, address: str, query: ReplicaQuery, deadline: Deadline
    ) -> concurrent.futures.Future[RankGroup]:
        """Start looking up all ranks of a DP replica; the service waits for what is missing.

        The future raises BootstrapError or AuthenticationError.
        """
        return self._loop.submit(self._resolve(address, query, deadline))

    def any_rank(
        self, address: str, wait: float, deadline: Deadline
    ) -> concurrent.futures.Future[RankRecord]:
        """Start one attempt to hear of some rank; the service waits ``wait`` seconds for the first.

        The future raises BootstrapError or AuthenticationError.
        """
        return self._loop.submit(self._any_rank(address, wait, deadline))

    def withdraw(self, address: str, incarnation: Incarnation, deadline: Deadline) -> None:
        """Take a registration back, and renew it no more; failing to is logged, the lease ends it then."""
        self._leaving = True
        try:
            self._loop.call(self._withdraw(address, incarnation), deadline)
        except (PDCoreError, *_UNREACHED) as error:
            _log.info("could not withdraw from the bootstrap service at %s: %s", address, error)

    def close(self, deadline: Deadline) -> None:
        """End all requests and the thread; idempotent. Takes a moment even when the deadline has passed."""
        deadline = Deadline.after(max(deadline.remaining(), _MOMENT))
        if not self._closed:
            self._closed = True
            with suppress(TimeoutError, ForkedError):
                self._loop.call(self._requests.close(), deadline)
        self._loop.close(deadline)

    async def _keep_putting(
        self, address: str, what: str, record: RankRecord | RoomsRecord, deadline: Deadline
    ) -> None:
        while True:
            try:
                return await self._put(address, what, record, deadline.remaining())
            except _UNREACHED as error:
                if deadline.remaining() <= _RETRY:
                    raise self._unreachable(address) from error
                await asyncio.sleep(_RETRY)

    async def _renew(
        self, address: str, record: RankRecord, heard: Callable[[Exception | None], None]
    ) -> None:
        try:
            await self._put(address, "ranks", record, record.lease)
        except (PDCoreError, *_UNREACHED) as error:
            heard(error)
        else:
            heard(None)

    async def _register_rooms(self, address: str, record: RoomsRecord, seconds: float) -> None:
        deadline = Deadline.after(seconds)
        try:
            for first in range(0, len(record.rooms), ROOMS_AT_ONCE):
                some = record.rooms[first : first + ROOMS_AT_ONCE]
                await self._keep_putting(address, "rooms", attrs.evolve(record, rooms=some), deadline)
        except PDCoreError as error:
            _log.warning("could not register rooms at the bootstrap service %s: %s", address, error)

    async def _put(self, address: str, what: str, record: RankRecord | RoomsRecord, seconds: float) -> None:
        body = msgspec.json.encode(record)
        status, answer = await self._reach("PUT", address, f"/v1/{what}", body, seconds)
        if status != 204:
            raise refused(address, status, answer)

    async def _resolve(self, address: str, query: ReplicaQuery, deadline: Deadline) -> RankGroup:
        unknown: BootstrapError | None = None
        while (left := deadline.remaining()) > 0:
            try:
                group = await self._ask(address, query, left)
            except _UNREACHED:
                unknown = None
            else:
                try:
                    return await dialable(group)
                except BootstrapError as error:  # a name that was made just now may take a moment
                    unknown = error
            await asyncio.sleep(min(_RETRY, max(deadline.remaining(), 0)))
        raise unknown or self._unreachable(address)

    async def _reach(
        self, method: str, address: str, path: str, body: bytes, seconds: float
    ) -> tuple[int, bytes]:
        """Ask, and count it if nobody answers."""
        began = time.monotonic()
        try:
            answer = await self._requests.ask(method, address, path, body, _within(seconds))
        except _UNREACHED as error:
            self._attempts.failed(address, error, time.monotonic() - began)
            raise
        if answer[0] == CROWDED and method == "GET":
            crowded = _ServerBusy(refused(address, *answer).there_is)
            self._attempts.failed(address, crowded, time.monotonic() - began)
            raise crowded
        self._attempts.succeeded(address)
        return answer

    def _unreachable(self, address: str) -> BootstrapError:
        return BootstrapError(
            f"the bootstrap service at {address} cannot be reached",
            self._attempts.told(address) or NO_ANSWER,
            "check the address and that the prefill side's bootstrap service runs",
        )

    async def _ask(self, address: str, query: ReplicaQuery, seconds: float) -> RankGroup:
        asked = urlencode({**query.parameters, "wait": f"{seconds:.3f}"})
        # The service answers when its own wait ends; the client's clock only guards against silence.
        status, body = await self._reach("GET", address, f"/v1/ranks?{asked}", b"", seconds + 1)
        return _read(_read_group, address, status, body)

    async def _any_rank(self, address: str, wait: float, deadline: Deadline) -> RankRecord:
        path = f"/v1/ranks/any?wait={wait:.3f}"
        try:
            status, body = await self._reach("GET", address, path, b"", deadline.remaining())
        except _UNREACHED as error:
            raise self._unreachable(address) from error
        return _read(_read_rank, address, status, body)

    async def _withdraw(self, address: str, incarnation: Incarnation) -> None:
        if self._renewal is not None:  # which would bring it back
            await asyncio.wait([asyncio.wrap_future(self._renewal)])
        await self._requests.ask("DELETE", address, f"/v1/ranks/{incarnation}", b"", _within(_WITHDRAW))


def _read(decode: Callable[[bytes], Record], address: str, status: int, body: bytes) -> Record:
    if status != 200:
        raise refused(address, status, body)
    try:
        return decode(body)
    except (msgspec.DecodeError, PDCoreError) as error:  # what a stranger says runs our validators
        raise refused(address, status, body) from error


def _within(seconds: float) -> Deadline:
    return Deadline.after(max(seconds, 0.001))
