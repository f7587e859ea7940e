"""Carries the requests of the bootstrap client, with credentials if there is a key."""

from __future__ import annotations

import hmac

import aiohttp
import msgspec

from pdcore.bootstrap.auth import (
    ANSWER_CODE,
    CHALLENGE_PATH,
    SPENT,
    UNAUTHORISED,
    Credentials,
    answer_code,
)
from pdcore.bootstrap.http.refusal import Refusal
from pdcore.config.auth_key import AuthKey
from pdcore.errors import AuthenticationError, BootstrapError
from pdcore.model import Deadline

__all__ = ["SignedRequests", "refused"]


class _Challenge(msgspec.Struct, frozen=True):
    challenge: str


# Made at import: msgspec 0.22 crashes when two threads (clients) are the first to decode a type.
_read_challenge = msgspec.json.Decoder(_Challenge).decode
_read_refusal = msgspec.json.Decoder(Refusal).decode


class SignedRequests:
    """Asks bootstrap services and believes only their answers. Belongs to the client's loop."""

    def __init__(self, key: AuthKey | None) -> None:
        self._key = key
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def ask(
        self, method: str, address: str, path: str, body: bytes, deadline: Deadline
    ) -> tuple[int, bytes]:
        """Return the status and the body of an answer; ``path`` has the query.

        Raises:
            AuthenticationError: the service requires a key, has none or another, or somebody else answered.
            BootstrapError: it gave no challenge.
            aiohttp.ClientError, OSError, asyncio.TimeoutError: it was not reached in time.
        """
        if self._key is None:
            status, answer, _ = await self._request(method, address + path, body, {}, deadline)
            if status == UNAUTHORISED:
                raise _unauthenticated(address, status, answer)
            return status, answer
        status, answer, right = await self._signed(self._key, method, address, path, body, deadline)
        if status == SPENT and not right:  # a service that was started anew knows no older challenge
            status, answer, right = await self._signed(self._key, method, address, path, body, deadline)
        if not right:
            raise _unauthenticated(address, status, answer)
        return status, answer

    async def close(self) -> None:
        """End all connections."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _signed(
        self, key: AuthKey, method: str, address: str, path: str, body: bytes, deadline: Deadline
    ) -> tuple[int, bytes, bool]:
        """Return the status and the body of an answer, and whether its code is right."""
        signed = Credentials.sign(key, await self._challenge(address, deadline), method, path, body)
        status, answer, given = await self._request(method, address + path, body, signed.headers, deadline)
        right = answer_code(key, signed.code, status, answer)
        return status, answer, hmac.compare_digest(given.encode(), right.encode())

    async def _challenge(self, address: str, deadline: Deadline) -> str:
        status, body, _ = await self._request("GET", address + CHALLENGE_PATH, b"", {}, deadline)
        if status == UNAUTHORISED:
            raise _unauthenticated(address, status, body)
        try:
            return _read_challenge(body).challenge
        except msgspec.DecodeError as error:
            raise refused(address, status, body) from error

    async def _request(
        self, method: str, where: str, body: bytes, headers: dict[str, str], deadline: Deadline
    ) -> tuple[int, bytes, str]:
        if self._closed:
            raise aiohttp.ClientConnectionError("this client is closed")
        if self._session is None:
            self._session = aiohttp.ClientSession()
        limit = aiohttp.ClientTimeout(total=max(deadline.remaining(), 0.001))
        async with self._session.request(
            method, f"http://{where}", data=body or None, headers=headers, timeout=limit
        ) as response:
            return response.status, await response.read(), response.headers.get(ANSWER_CODE, "")


def refused(address: str, status: int, body: bytes) -> BootstrapError:
    """Return the error that a service answered with."""
    said = _refusal(status, body)
    return BootstrapError(f"{said.happened} (bootstrap service {address})", said.there_is, said.to_do)


def _unauthenticated(address: str, status: int, body: bytes) -> AuthenticationError:
    if status in (UNAUTHORISED, SPENT):
        said = _refusal(status, body)
    else:
        there_is = f"HTTP {status} without a right code: somebody without the key answered"
        to_do = "check the address, and who can reach the connection"
        said = Refusal("the answer cannot be believed", there_is, to_do)
    happened = f"{said.happened} (bootstrap service {address})"
    return AuthenticationError(happened, said.there_is, said.to_do)


def _refusal(status: int, body: bytes) -> Refusal:
    try:
        return _read_refusal(body)
    except msgspec.DecodeError:
        return Refusal(
            "the bootstrap service answered strangely",
            f"HTTP {status}, {body[:80]!r}",
            "check that the address is a pdcore bootstrap service",
        )
