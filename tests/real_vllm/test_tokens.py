"""Greedy tokens of a vLLM pair are those of a single vLLM, over each backend."""

from __future__ import annotations

import pytest
from serving import cases
from serving.client import get, metric
from serving.fixtures import Wanted
from serving.pairs import Pair
from serving.prompts import make_prompts

PROMPTS = make_prompts(200, 12, longest=1500, shared=64)
over = pytest.mark.parametrize("running", ["local", "mooncake_tcp", "nixl_tcp"], indirect=True)
over_local = pytest.mark.parametrize("running", ["local"], indirect=True)
over_parcel = pytest.mark.parametrize("running", ["parcel"], indirect=True)


@over
def test_two_hundred_prompts_are_equal(running: Pair, wanted: Wanted) -> None:
    cases.require_equal(running, wanted, PROMPTS)
    cases.require_rooms(running, 150)
    for server in (running.prefill, running.decode):
        assert metric(get(server.url, "/metrics"), "vllm:pdcore_rooms_total") >= 150, server.name


@over_local
def test_pages_of_others_change_the_tokens(running: Pair, wanted: Wanted) -> None:
    compared = cases.corrupted(running, wanted)
    assert len(compared.different) >= compared.count * 3 // 4, str(compared)
    cases.require_equal(running, wanted, make_prompts(8, 77, longest=300))


@over_parcel
def test_a_backend_of_somebody_else_serves(running: Pair, wanted: Wanted) -> None:
    cases.require_equal(running, wanted, PROMPTS[:50])
    cases.require_rooms(running, 40)
