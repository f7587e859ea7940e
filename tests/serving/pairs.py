"""Prefill and decode servers of one engine with a router before them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs

from .client import PATIENCE, Answer, Prompt, ask
from .engines import (
    NONE,
    Command,
    Engine,
    Role,
    Settings,
    sglang_own,
    sglang_pdcore,
    sglang_single,
    vllm_own,
    vllm_pdcore,
    vllm_single,
)
from .router import Prefill, Router, Running
from .servers import Server, Servers, ready

OWN = "own"
"""Stands for the engine's own transfer code where a backend is named."""
LEASE = 20.0
"""Seconds after which prefill lets go of blocks that a decode which was killed has never asked for."""


def single(engine: Engine, *more: str) -> Command:
    """The server to compare with."""
    return vllm_single(*more) if engine is Engine.VLLM else sglang_single(*more)


def side(engine: Engine, role: Role, backend: str, *more: str, environment: Settings = NONE) -> Command:
    """One side over a backend of pdcore, or over the engine's own code."""
    if engine is Engine.VLLM:
        if backend == OWN:
            return vllm_own(role, *more, environment=environment)
        return vllm_pdcore(role, backend, *more, options={"lease": LEASE}, environment=environment)
    if backend == OWN:
        return sglang_own(role, *more, environment=environment)
    return sglang_pdcore(role, backend, *more, environment=environment)


@attrs.frozen
class Pair:
    """Servers of both roles, all ready, and the router's address."""

    engine: Engine
    url: str
    prefills: tuple[Server, ...]
    decodes: tuple[Server, ...]

    @property
    def prefill(self) -> Server:
        return self.prefills[0]

    @property
    def decode(self) -> Server:
        return self.decodes[0]

    def ask(self, prompt: Prompt, *, timeout: float = PATIENCE, stream: bool = True) -> Answer:
        """Ask through the router."""
        return ask(self.url, prompt, timeout=timeout, stream=stream)


def prefill_of(server: Server) -> Prefill:
    """What a router needs of a prefill server."""
    return Prefill(server.url, server.command.bootstrap)


@contextmanager
def routed(engine: Engine, prefills: Sequence[Server], decodes: Sequence[Server]) -> Iterator[Pair]:
    """Wait for servers that were started, and put a router before them."""
    ready([*prefills, *decodes])
    router = Router(engine, [prefill_of(p) for p in prefills], [d.url for d in decodes])
    with Running(router) as url:
        yield Pair(engine, url, tuple(prefills), tuple(decodes))


@contextmanager
def pair(
    servers: Servers,
    engine: Engine,
    backend: str,
    *more: str,
    environment: Settings = NONE,
    alone: bool = False,
) -> Iterator[Pair]:
    """Start one prefill and one decode server, alike but for their role, and end them."""
    commands = {
        f"{backend}-{role.value}": side(engine, role, backend, *more, environment=environment)
        for role in (Role.PREFILL, Role.DECODE)
    }
    started = servers.start(**{name: attrs.evolve(c, alone=alone) for name, c in commands.items()})
    try:
        with routed(engine, started[:1], started[1:]) as running:
            yield running
    finally:
        for server in started:
            server.kill()
