"""An HTTP service on a loop: who connects is held to limits, and its end loses no connection."""

from __future__ import annotations

import asyncio

from aiohttp import web

from pdcore.bootstrap.http.connections import Connections
from pdcore.host.machine import listen

__all__ = ["Site"]

LINGERING = 1.0
"""Seconds for which the rest of a refused request is read, so that its sender sees the answer."""


class Site:
    """Serves an application, of which ``connections.middleware`` must be the first; belongs to one loop."""

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    async def open(self, app: web.Application, host: str, port: int) -> int:
        """Bind and serve; return the port.

        Raises:
            OSError: the port is in use, or the address is not of this machine.
        """
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=1.0,
            max_headers=self.connections.limits.headers,
            lingering_time=LINGERING,
            logger=self.connections.log,
        )
        await self._runner.setup()
        assert self._runner.server is not None
        make = self.connections.start(self._runner.server)
        listener = listen(host, port)
        self._listener = await asyncio.get_running_loop().create_server(make, sock=listener)
        return int(listener.getsockname()[1])

    async def close(self) -> None:
        """Serve no more; idempotent, also of what could not be opened."""
        runner, listener = self._runner, self._listener
        self._runner = self._listener = None
        if listener is not None:
            # asyncio loses a connection that it accepts in the turn in which its server closes: so stop
            # accepting first, and let those turns pass that make a connection known to the runner.
            for sock in listener.sockets:
                asyncio.get_running_loop().remove_reader(sock.fileno())
            for _ in range(3):
                await asyncio.sleep(0)
            listener.close()
        self.connections.stop()
        if runner is not None:
            await runner.cleanup()
