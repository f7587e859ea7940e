"""Clients that go, servers that are killed, pages that differ: each costs its own requests only."""

from __future__ import annotations

import pytest
from serving import cases
from serving.client import ask
from serving.engines import Role, sglang_pdcore
from serving.fixtures import Wanted
from serving.pairs import Pair, prefill_of
from serving.prompts import make_prompts
from serving.router import Router, Running
from serving.servers import Servers

over_nixl = pytest.mark.parametrize("running", ["nixl_tcp"], indirect=True)


@over_nixl
def test_clients_that_hang_up_cost_nothing(running: Pair, wanted: Wanted) -> None:
    cases.hang_ups(running, wanted, 31)


@over_nixl
def test_a_prefill_that_is_killed_costs_only_its_requests(running: Pair, wanted: Wanted) -> None:
    cases.kill_and_restart(running, wanted, running.prefill, 51)


@over_nixl
def test_a_decode_that_is_killed_costs_only_its_requests(running: Pair, wanted: Wanted) -> None:
    cases.kill_and_restart(running, wanted, running.decode, 61)


@over_nixl
def test_two_prefill_servers_take_turns_and_one_may_die(
    running: Pair, wanted: Wanted, servers: Servers
) -> None:
    (second,) = servers.up(**{"second-prefill": sglang_pdcore(Role.PREFILL, "nixl_tcp")})
    cases.two_prefills(running, wanted, second, 81)


@over_nixl
def test_other_page_sizes_are_refused_and_both_servers_live(
    running: Pair, wanted: Wanted, servers: Servers
) -> None:
    (other,) = servers.up(**{"decode-of-16": sglang_pdcore(Role.DECODE, "nixl_tcp", "--page-size", "16")})
    (prompt,) = make_prompts(1, 71, longest=300)
    with Running(Router(running.engine, [prefill_of(running.prefill)], [other.url])) as url:
        answer = ask(url, prompt)
    assert "page" in (answer.error or "")
    assert other.alive()
    other.kill()
    cases.require_equal(running, wanted, make_prompts(8, 72, longest=300))
