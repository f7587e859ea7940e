"""A small round-robin router: OpenAI completions over any number of prefill and decode servers.

vLLM: prefill first, with one token; its kv_transfer_params go to decode. SGLang: both at once, with one room.
Nothing is tried twice: what fails is what a test wants to see.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import secrets
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import attrs
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    TCPConnector,
    web,
)

from .engines import Engine
from .ports import free_port

REMOTE = {"do_remote_decode": True, "do_remote_prefill": False}
UNASKED = ClientTimeout(total=None, sock_connect=10.0)
"""The client's own patience ends a request: it hangs up, and so does the router."""


@attrs.frozen
class Prefill:
    """A prefill server; SGLang's clients name its bootstrap service, too."""

    url: str
    bootstrap: int | None = None


class RefusedError(Exception):
    """A server answered with an error, or not at all."""

    def __init__(self, who: str, status: int, text: str, *, heard: bool = True) -> None:
        super().__init__(f"{who}: {status or 'no answer'}: {text}")
        self.status = status
        self.heard = heard
        """Whether it may have taken the request before."""


async def _post(session: ClientSession, who: str, url: str, body: dict[str, Any]) -> ClientResponse:
    try:
        reply = await session.post(f"{url}/v1/completions", json=body)
    except (ClientError, OSError) as error:
        heard = not isinstance(error, ClientConnectorError)
        raise RefusedError(f"{who} at {url}", 0, repr(error), heard=heard) from error
    if reply.status != web.HTTPOk.status_code:
        text = (await reply.text())[:4000]
        reply.release()
        raise RefusedError(f"{who} at {url}", reply.status, text)
    return reply


async def _pass_on(request: web.Request, reply: ClientResponse) -> web.StreamResponse:
    """Hand decode's answer to the client: a stream as it comes, with an error event if decode dies in it."""
    kind = reply.headers.get("Content-Type", "application/json")
    if "event-stream" not in kind:
        return web.Response(body=await reply.read(), headers={"Content-Type": kind})
    out = web.StreamResponse(headers={"Content-Type": kind})
    try:
        async for piece in reply.content.iter_any():
            if not out.prepared:
                await out.prepare(request)
            await out.write(piece)
    except (ClientError, ConnectionError) as error:
        if not out.prepared:
            raise
        event = {"error": {"message": f"decode at {reply.url.origin()}: the answer broke off: {error!r}"}}
        await out.write(b"data: " + json.dumps(event).encode() + b"\n\n")
    await out.write_eof()
    return out


def once(body: dict[str, Any]) -> dict[str, Any]:
    """The request that vLLM's prefill gets: one token, at once, and the pages stay."""
    return body | {"max_tokens": 1, "stream": False, "kv_transfer_params": REMOTE}


def with_room(body: dict[str, Any], prefill: Prefill, room: int) -> dict[str, Any]:
    """The request that both of SGLang's servers get."""
    place = {"bootstrap_host": urlsplit(prefill.url).hostname, "bootstrap_port": prefill.bootstrap}
    return body | place | {"bootstrap_room": room}


class Router:
    """The web application; ``Running`` serves it."""

    def __init__(self, engine: Engine, prefills: Sequence[Prefill], decodes: Sequence[str]) -> None:
        self._prefills = itertools.cycle(prefills)
        self._decodes = itertools.cycle(decodes)
        self._engine = engine
        self._session: ClientSession | None = None

    def application(self) -> web.Application:
        """Serves POST /v1/completions and GET /health."""
        application = web.Application(client_max_size=64 << 20)
        application.router.add_post("/v1/completions", self._complete)
        application.router.add_get("/health", self._health)
        application.cleanup_ctx.append(self._sessions)
        return application

    async def _sessions(self, _: web.Application) -> Any:
        async with ClientSession(
            timeout=UNASKED, connector=TCPConnector(limit=0, force_close=True)
        ) as session:
            self._session = session
            yield

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prefill, decode = next(self._prefills), next(self._decodes)
        hand_over = self._one_by_one if self._engine is Engine.VLLM else self._both
        try:
            return await hand_over(request, body, prefill, decode)
        except RefusedError as refused:
            text = json.dumps({"object": "error", "message": str(refused)})
            return web.Response(status=refused.status or 502, text=text, content_type="application/json")
        except (ClientError, ConnectionError) as error:  # no byte of an answer has gone out
            text = json.dumps({"object": "error", "message": f"an answer broke off: {error!r}"})
            return web.Response(status=502, text=text, content_type="application/json")

    async def _one_by_one(
        self, request: web.Request, body: dict[str, Any], prefill: Prefill, decode: str
    ) -> web.StreamResponse:
        assert self._session is not None
        async with await _post(self._session, "prefill", prefill.url, once(body)) as first:
            parameters = (await first.json()).get("kv_transfer_params")
        asked = body | {"kv_transfer_params": parameters}
        return await self._answer(request, decode, asked)

    async def _both(
        self, request: web.Request, body: dict[str, Any], prefill: Prefill, decode: str
    ) -> web.StreamResponse:
        assert self._session is not None
        asked = with_room(body, prefill, secrets.randbits(62))
        first = asyncio.create_task(self._drain(prefill.url, asked))
        answer = asyncio.create_task(self._answer(request, decode, asked))
        try:
            await asyncio.wait((first, answer), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and (refused := first.result()) is not None and not refused.heard:
                raise refused  # decode would wait for a prefill that knows nothing of it
            return await answer
        except RefusedError as refused:
            if first.done() and (why := first.result()) not in (None, refused):
                raise RefusedError(f"{refused}; prefill at {prefill.url}", 500, str(why)) from refused
            raise
        finally:
            first.cancel()
            answer.cancel()

    async def _answer(self, request: web.Request, decode: str, asked: dict[str, Any]) -> web.StreamResponse:
        assert self._session is not None
        async with await _post(self._session, "decode", decode, asked) as reply:
            return await _pass_on(request, reply)

    async def _drain(self, url: str, asked: dict[str, Any]) -> RefusedError | None:
        """Ask prefill, and return its error if it has one: its answer is decode's to give."""
        assert self._session is not None
        try:
            async with await _post(self._session, "prefill", url, asked | {"stream": False}) as reply:
                await reply.read()
        except RefusedError as refused:
            return refused
        except (ClientError, OSError) as error:
            return RefusedError(f"prefill at {url}", 0, repr(error))
        return None


class Running:
    """A router in a thread of its own: ``with Running(router) as url``."""

    def __init__(self, router: Router, port: int | None = None) -> None:
        self.url = f"http://127.0.0.1:{port or free_port()}"
        self._router = router
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serving-router", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(self._router.application(), handler_cancellation=True, shutdown_timeout=1.0)
        try:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", urlsplit(self.url).port).start()
            self._up.set()
            await self._over.wait()
        finally:
            self._up.set()
            await runner.cleanup()

    def __enter__(self) -> str:
        self._thread.start()
        self._up.wait()
        assert self._thread.is_alive(), "the router did not start; its thread has told why"
        return self.url

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._over is not None:
            self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


def main() -> None:
    """Serve in the foreground: ``python -m tests.serving.router --help``."""
    parser = argparse.ArgumentParser(description="Round-robin router over prefill and decode servers.")
    parser.add_argument("--engine", choices=[e.value for e in Engine], required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--prefill",
        action="append",
        required=True,
        help="URL, for SGLang URL,BOOTSTRAP_PORT; may be repeated",
    )
    parser.add_argument("--decode", action="append", required=True, help="URL; may be repeated")
    chosen = parser.parse_args()
    prefills = []
    for text in chosen.prefill:
        url, _, bootstrap = text.partition(",")
        prefills.append(Prefill(url, int(bootstrap) if bootstrap else None))
    router = Router(Engine(chosen.engine), prefills, chosen.decode)
    web.run_app(router.application(), host="127.0.0.1", port=chosen.port, handler_cancellation=True)


if __name__ == "__main__":
    main()
