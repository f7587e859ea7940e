"""Which engine the fixtures start, and how."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving.engines import Engine
from serving.fixtures import pytest_collection_modifyitems, servers, started_reference, wanted
from serving.pairs import Pair, pair
from serving.servers import Server, Servers

__all__ = ["engine", "pytest_collection_modifyitems", "running", "servers", "started_reference", "wanted"]

SPAWNED = "mooncake_tcp"


@pytest.fixture(scope="session")
def engine() -> Engine:
    """What all servers of this folder are."""
    return Engine.SGLANG


@pytest.fixture(scope="session")
def running(request: pytest.FixtureRequest, servers: Servers, started_reference: Server) -> Iterator[Pair]:
    """A prefill and a decode server over the backend that the test's parameter names; one pair at a time.

    One of the pairs is spawned as SGLang's users do, all other servers are forks of a nursery.
    """
    backend = request.param
    with pair(servers, Engine.SGLANG, backend, alone=backend == SPAWNED) as made:
        yield made
