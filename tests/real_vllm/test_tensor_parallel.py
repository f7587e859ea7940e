"""Prefill and decode of unequal tensor parallelism: every KV head arrives in its place."""

from __future__ import annotations

import pytest
from serving import cases
from serving.engines import Engine, Role
from serving.fixtures import Wanted
from serving.pairs import routed, side
from serving.prompts import make_prompts
from serving.servers import Servers

PROMPTS = make_prompts(40, 21, longest=900, shared=64)


@pytest.mark.parametrize(("prefill", "decode"), [(2, 1), (1, 2)])
def test_tokens_are_equal(prefill: int, decode: int, servers: Servers, wanted: Wanted) -> None:
    started = servers.start(
        **{
            f"{role.value}-tp{size}": side(Engine.VLLM, role, "local", "--tensor-parallel-size", str(size))
            for role, size in ((Role.PREFILL, prefill), (Role.DECODE, decode))
        }
    )
    try:
        wanted(PROMPTS)  # while they start
        with routed(Engine.VLLM, started[:1], started[1:]) as running:
            cases.require_equal(running, wanted, PROMPTS)
            cases.require_rooms(running, 30)
    finally:
        for server in started:
            server.kill()
