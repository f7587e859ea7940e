"""Prefill with TP 2, decode with TP 1: the tokens of SGLang's own backend, whose arithmetic is the same."""

from __future__ import annotations

from collections.abc import Sequence

from serving.client import Answer, ask_all
from serving.compare import compare
from serving.engines import Engine, Role
from serving.pairs import OWN, routed, side
from serving.prompts import make_prompts
from serving.servers import Servers

PROMPTS = make_prompts(24, 21, longest=900, most_tokens=16)
TWO_CORES = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}


def answers(servers: Servers, backend: str) -> Sequence[Answer]:
    """What a pair of TP 2 and TP 1 answers, one at a time: no batch changes the arithmetic."""
    started = servers.start(
        **{
            f"{backend}-prefill-tp2": side(
                Engine.SGLANG, Role.PREFILL, backend, "--tp-size", "2", environment=TWO_CORES
            ),
            f"{backend}-decode-tp1": side(Engine.SGLANG, Role.DECODE, backend),
        }
    )
    try:
        with routed(Engine.SGLANG, started[:1], started[1:]) as running:
            return ask_all(PROMPTS, running.ask, 1)
    finally:
        for server in started:
            server.kill()


def test_tokens_are_those_of_sglangs_own_backend(servers: Servers) -> None:
    compared = compare(PROMPTS, answers(servers, OWN), answers(servers, "mooncake_tcp"))
    assert compared.equal == len(PROMPTS), str(compared)
