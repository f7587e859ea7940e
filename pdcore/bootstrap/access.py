"""Who may speak to the bootstrap service: whoever has its key, or everybody if it has none."""

from __future__ import annotations

import logging
from collections import Counter

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from pdcore.bootstrap.auth import (
    ANSWER_CODE,
    CHALLENGE_PATH,
    SPENT,
    UNAUTHORISED,
    Challenges,
    Credentials,
    answer_code,
)
from pdcore.bootstrap.http.refusal import refuse
from pdcore.config.auth_key import AuthKey
from pdcore.model import Clock
from pdcore.wire.complaints import COMPLAINT_SECONDS, Complaints

__all__ = ["Access"]

OPEN_PATHS = frozenset({"/health", CHALLENGE_PATH})
SAME_KEY = "set the same PDCORE_AUTH_KEY on both sides, or on neither"


class Access:
    """Checks every request and signs every answer.

    ``counts["unauthenticated"]`` says how many requests were turned away. Belongs to the service's loop.
    """

    def __init__(self, key: AuthKey | None, clock: Clock) -> None:
        self.counts: Counter[str] = Counter()
        self._key = key
        self._challenges = Challenges(clock)
        self._complaints = Complaints(logging.getLogger("pdcore.bootstrap"), COMPLAINT_SECONDS)

    @property
    def middleware(self) -> Middleware:
        """What aiohttp passes every request through."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._check(request, handler)

        return check

    async def challenge(self, _request: web.Request) -> web.StreamResponse:
        """Answer who asks for a challenge."""
        if self._key is None:
            there_is = "the client has PDCORE_AUTH_KEY (auth_key) set"
            return refuse(UNAUTHORISED, "the bootstrap service has no key", there_is, SAME_KEY)
        return web.json_response({"challenge": self._challenges.make()})

    async def _check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if self._key is None or request.path in OPEN_PATHS:
            return await handler(request)
        body = await request.read()
        credentials = Credentials.of(request.headers)
        if not credentials.fit(self._key, request.method, request.raw_path, body):
            what = "is wrong: its key is another" if credentials.code else "is missing: it has no key"
            return self._turn_away(request, UNAUTHORISED, f"the code of the request {what}")
        if not self._challenges.spend(credentials.challenge):
            there_is = "the challenge came back before, is too old, or of another life of the service"
            return self._turn_away(request, SPENT, there_is)
        response = await handler(request)
        content = response.body if isinstance(response, web.Response) else None
        content = content if isinstance(content, bytes) else b""
        response.headers[ANSWER_CODE] = answer_code(self._key, credentials.code, response.status, content)
        return response

    def _turn_away(self, request: web.Request, status: int, there_is: str) -> web.Response:
        self.counts["unauthenticated"] += 1
        sender = f"{request.remote} {status}"
        self._complaints.about(sender, f"unauthenticated request, {request.remote}: {there_is}")
        return refuse(status, "the bootstrap service requires its key", there_is, SAME_KEY)
