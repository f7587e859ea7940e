"""Too few blocks, prompts in chunks, prefixes that decode has, a prefill that is gone: tokens stay equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from serving import cases
from serving.client import Prompt, ask, ask_all, get, metric
from serving.compare import compare
from serving.engines import Engine, Role, vllm_pdcore
from serving.fixtures import Wanted
from serving.pairs import Pair, routed
from serving.prompts import make_prompts
from serving.router import REMOTE
from serving.servers import Servers

BLOCK = 32
BLOCKS = 72
"""Of decode: enough for the longest request, and for half of eight."""
CHUNK = 256


@pytest.fixture(scope="module")
def tight(servers: Servers) -> Iterator[Pair]:
    """A prefill that computes in chunks; a decode that has few blocks, and recomputes what does not come."""
    chunked = ("--max-num-batched-tokens", str(CHUNK))
    few = ("--num-gpu-blocks-override", str(BLOCKS))
    started = servers.start(
        **{
            "tight-prefill": vllm_pdcore(Role.PREFILL, "local", *chunked),
            "tight-decode": vllm_pdcore(Role.DECODE, "local", *few, on_failure="recompute"),
        }
    )
    try:
        with routed(Engine.VLLM, started[:1], started[1:]) as running:
            yield running
    finally:
        for server in started:
            server.kill()


def longer_than(tokens: int, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those of them."""
    return [prompt for prompt in prompts if len(prompt.tokens) > tokens]


def test_prompts_in_chunks_are_equal(tight: Pair, wanted: Wanted) -> None:
    prompts = longer_than(CHUNK, make_prompts(100, 14, longest=1500, most_tokens=8))[:8]
    cases.require_equal(tight, wanted, prompts)
    cases.require_rooms(tight, 8)


def test_requests_that_are_preempted_are_equal(tight: Pair, wanted: Wanted) -> None:
    chosen = longer_than(6 * BLOCK, make_prompts(200, 15))[:8]
    prompts = [Prompt(p.tokens[: 6 * BLOCK], 4 * BLOCK) for p in chosen]  # 48 blocks at first, 80 in the end
    compared = compare(prompts, wanted(prompts), ask_all(prompts, tight.ask))
    assert compared.equal == len(prompts), str(compared)
    assert metric(get(tight.decode.url, "/metrics"), "vllm:num_preemptions_total") > 0


def test_what_decode_has_is_not_sent_again(tight: Pair, wanted: Wanted) -> None:
    tokens = longer_than(10 * BLOCK, make_prompts(200, 16))[0].tokens[: 10 * BLOCK]
    first, part = Prompt(tokens, 8), Prompt((*tokens[: 4 * BLOCK], *reversed(tokens)), 8)
    before = len(tight.decode.rooms())
    cases.require_equal(tight, wanted, [first])
    cases.require_equal(tight, wanted, [first, part])
    sent = [room["pages"] for room in tight.decode.rooms()[before:]]
    assert sent == [10, 1, 10], f"pages: {sent}"


def test_decode_computes_what_a_dead_prefill_cannot_send(tight: Pair, wanted: Wanted) -> None:
    (prompt,) = make_prompts(1, 17, longest=300)
    first = ask(tight.prefill.url, prompt, stream=False, max_tokens=1, kv_transfer_params=REMOTE)
    assert first.error is None
    tight.prefill.kill()
    answer = ask(tight.decode.url, prompt, stream=False, kv_transfer_params=first.transfer)
    assert (answer.error, answer.tokens) == (None, wanted([prompt])[0].tokens)
    assert "pdcore_failure" in (answer.transfer or {}), answer.transfer
