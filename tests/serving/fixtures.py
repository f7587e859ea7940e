"""Fixtures of tests/real_vllm and tests/real_sglang; fixture ``engine`` is theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest

from .client import Answer, Prompt, ask, in_waves
from .demo import LOGS
from .engines import Engine, missing
from .nursery import Nursery
from .pairs import Pair, pair, single
from .servers import Server, Servers

Wanted = Callable[[Sequence[Prompt]], list[Answer]]


@pytest.fixture(scope="session", autouse=True)
def servers(engine: Engine) -> Iterator[Servers]:
    """Ends whatever a test has started. The imports begin with the first test, whatever it is."""
    lack = missing(engine)
    assert lack is None, lack
    logs = LOGS / engine.value
    with Nursery.of(engine, logs) as nursery, Servers(logs, nursery.launch) as running:
        yield running


@pytest.fixture(scope="session")
def started_reference(engine: Engine, servers: Servers) -> Server:
    """The server to compare with, on its way."""
    return servers.start(single=single(engine))[0]


@pytest.fixture(scope="session")
def wanted(request: pytest.FixtureRequest, started_reference: Server) -> Wanted:
    """The single server's answers, each prompt asked once; what it should answer is nobody's test."""
    known: dict[Prompt, Answer] = {}

    def answers(prompts: Sequence[Prompt]) -> list[Answer]:
        new = [p for p in dict.fromkeys(prompts) if p not in known]
        if new:
            started_reference.ready()
            known.update(zip(new, in_waves(new, lambda p: ask(started_reference.url, p)), strict=True))
        return [known[p] for p in prompts]

    return answers


SPAWNED = {(Engine.SGLANG, "mooncake_tcp")}
"""Pairs that start as SGLang's users start them; all other servers are forks of a nursery."""
CAREFUL = {"parcel": {"PDCORE_AUTH_KEY": "a secret of these tests", "PDCORE_TRANSFER_VERIFY": "all"}}
"""Backends whose pair authenticates its peers, and has decode check every page that arrived."""


@pytest.fixture(scope="session")
def running(
    request: pytest.FixtureRequest, engine: Engine, servers: Servers, started_reference: Server
) -> Iterator[Pair]:
    """A prefill and a decode server over the backend that the test's parameter names; one pair at a time."""
    backend, spawned = request.param, (engine, request.param) in SPAWNED
    with pair(servers, engine, backend, environment=CAREFUL.get(backend, {}), alone=spawned) as made:
        yield made


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one backend follow one another, over all files: a pair of servers takes a minute to start."""

    def backend(item: pytest.Item) -> str:
        call = getattr(item, "callspec", None)
        return str(call.params.get("running", "")) if call is not None else ""

    items.sort(key=backend)
