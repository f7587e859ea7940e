"""An answer over HTTP that is an error: it has the same three parts as every error."""

from __future__ import annotations

import attrs
import msgspec
from aiohttp import web

__all__ = ["Refusal", "refuse"]


@attrs.frozen
class Refusal:
    """The body of every error response: the three parts of an error."""

    happened: str
    there_is: str
    to_do: str


def refuse(status: int, happened: str, there_is: str, to_do: str) -> web.Response:
    """Return an answer that is an error."""
    body = msgspec.json.encode(Refusal(happened, there_is, to_do))
    return web.Response(status=status, body=body, content_type="application/json")
