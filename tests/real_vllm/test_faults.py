"""Clients that go, requests that come twice, servers that are killed: each costs its own requests only."""

from __future__ import annotations

import attrs
import pytest
from serving import cases
from serving.client import ask
from serving.engines import Role, vllm_pdcore
from serving.fixtures import Wanted
from serving.lives import blocks_in_use
from serving.pairs import Pair, prefill_of
from serving.prompts import make_prompts
from serving.router import REMOTE, Router, Running
from serving.servers import Server, Servers

over_nixl = pytest.mark.parametrize("running", ["nixl_tcp"], indirect=True)


@pytest.fixture(scope="module")
def others(servers: Servers) -> tuple[Server, Server]:
    """A second prefill, and a decode with blocks of 64, on their way: spawned as vLLM's users do."""
    commands = {
        "second-prefill": vllm_pdcore(Role.PREFILL, "nixl_tcp"),
        "decode-of-64": vllm_pdcore(Role.DECODE, "nixl_tcp", "--block-size", "64"),
    }
    second, of_64 = servers.start(**{n: attrs.evolve(c, alone=True) for n, c in commands.items()})
    return second, of_64


def free(server: Server) -> bool:
    """Whether all blocks of a server are free again."""
    return blocks_in_use(server) == 0


@over_nixl
def test_clients_that_hang_up_cost_nothing(running: Pair, wanted: Wanted) -> None:
    cases.hang_ups(running, wanted, 31)
    for server in (running.prefill, running.decode):
        cases.eventually(lambda server=server: free(server), f"all blocks of {server.name} are free")  # type: ignore[misc]


@over_nixl
def test_the_same_parameters_twice_are_answered_twice(running: Pair, wanted: Wanted) -> None:
    (prompt,) = make_prompts(1, 41, longest=300)
    (right,) = wanted([prompt])
    first = ask(running.prefill.url, prompt, stream=False, max_tokens=1, kv_transfer_params=REMOTE)
    assert first.error is None
    answers = [ask(running.decode.url, prompt, kv_transfer_params=first.transfer) for _ in range(3)]
    assert answers[0].tokens == right.tokens
    assert all(a.error is not None or a.tokens == right.tokens for a in answers)
    cases.require_equal(running, wanted, make_prompts(8, 42, longest=300))


@over_nixl
def test_a_prefill_that_is_killed_costs_only_its_requests(running: Pair, wanted: Wanted) -> None:
    cases.kill_and_restart(running, wanted, running.prefill, 51)
    cases.eventually(lambda: free(running.decode), "all blocks of decode are free")


@over_nixl
def test_a_decode_that_is_killed_costs_only_its_requests(
    running: Pair, wanted: Wanted, others: tuple[Server, Server]
) -> None:
    """The others start while this waits for the lease of what decode has not fetched."""
    cases.kill_and_restart(running, wanted, running.decode, 61)
    cases.eventually(lambda: free(running.prefill), "all blocks of prefill are free")


@over_nixl
def test_two_prefill_servers_take_turns_and_one_may_die(
    running: Pair, wanted: Wanted, others: tuple[Server, Server]
) -> None:
    cases.two_prefills(running, wanted, others[0].ready(), 81)


@over_nixl
def test_other_block_sizes_are_refused_and_both_servers_live(
    running: Pair, wanted: Wanted, others: tuple[Server, Server]
) -> None:
    other = others[1].ready()
    (prompt,) = make_prompts(1, 71, longest=300)
    with Running(Router(running.engine, [prefill_of(running.prefill)], [other.url])) as url:
        answer = ask(url, prompt)
    assert answer.error is not None
    assert other.alive()
    assert "64" in other.end_of_log()
    other.kill()
    cases.require_equal(running, wanted, make_prompts(8, 72, longest=300))
