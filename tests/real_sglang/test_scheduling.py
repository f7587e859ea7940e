"""What SGLang's scheduler does with a request on its way: chunks, hits, retractions, data parallel ranks."""

from __future__ import annotations

import pytest
from serving import cases
from serving.client import Prompt, ask_all
from serving.compare import compare
from serving.engines import Role, sglang_pdcore
from serving.fixtures import Wanted
from serving.pairs import Pair, routed
from serving.prompts import make_prompts
from serving.servers import Servers

over_local = pytest.mark.parametrize("running", ["local"], indirect=True)
over_parcel = pytest.mark.parametrize("running", ["parcel"], indirect=True)
LONG_ANSWERS = [Prompt(p.tokens[:120], 150) for p in make_prompts(8, 6, longest=1500)]


@over_parcel
def test_what_decode_holds_is_not_sent_again(running: Pair, wanted: Wanted) -> None:
    prompts = make_prompts(10, 33, longest=900)
    right, bytes_sent = wanted(prompts), []
    for _ in range(2):
        before = len(running.prefill.rooms())
        compared = compare(prompts, right, ask_all(prompts, running.ask, 1))
        assert compared.equal == len(prompts), str(compared)
        bytes_sent.append(sum(room["nbytes"] for room in running.prefill.rooms()[before:]))
    assert bytes_sent[1] < bytes_sent[0] / 2


@over_local
def test_a_decode_that_has_too_few_pages_retracts_and_goes_on(
    running: Pair, wanted: Wanted, servers: Servers
) -> None:
    little = ("--max-total-tokens", "1000", "--num-reserved-decode-tokens", "8")
    (small,) = servers.up(**{"small-decode": sglang_pdcore(Role.DECODE, "local", *little)})
    with routed(running.engine, [running.prefill], [small]) as narrow:
        compared = compare(LONG_ANSWERS, wanted(LONG_ANSWERS), ask_all(LONG_ANSWERS, narrow.ask, 8))
    assert compared.equal == len(LONG_ANSWERS), str(compared)
    assert "#retracted_reqs" in small.log.read_text()
    small.kill()


@over_local
def test_data_parallel_ranks_of_prefill_are_found(running: Pair, wanted: Wanted, servers: Servers) -> None:
    (wide,) = servers.up(**{"prefill-dp2": sglang_pdcore(Role.PREFILL, "local", "--dp-size", "2")})
    with routed(running.engine, [wide], [running.decode]) as over:
        cases.require_equal(over, wanted, make_prompts(16, 34, longest=600))
    wide.kill()
