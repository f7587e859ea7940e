"""What SGLang's scheduler does with a request on its way: it retracts it where pages are too few."""

from __future__ import annotations

import pytest
from serving.client import Prompt, ask_all
from serving.compare import compare
from serving.engines import Role, sglang_pdcore
from serving.fixtures import Wanted
from serving.pairs import Pair, routed
from serving.prompts import make_prompts
from serving.servers import Servers

over_local = pytest.mark.parametrize("running", ["local"], indirect=True)
LONG_ANSWERS = [Prompt(p.tokens[:120], 150) for p in make_prompts(8, 6, longest=1500)]


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
