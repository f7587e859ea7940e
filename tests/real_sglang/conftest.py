"""Which engine the fixtures start, and with what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving.engines import Engine
from serving.fixtures import pytest_collection_modifyitems, servers, started_reference, wanted
from serving.pairs import Pair, pair
from serving.servers import Server, Servers

__all__ = ["engine", "pytest_collection_modifyitems", "running", "servers", "started_reference", "wanted"]

CHUNKS = ("--chunked-prefill-size", "256")
HELD = ("--page-size", "16", "--disaggregation-decode-enable-radix-cache", *CHUNKS)
"""Pages of several tokens, prefill in chunks, and a decode that keeps what it had."""
SPAWNED = "mooncake_tcp"
MORE = {"parcel": HELD}
"""Arguments of both servers of a backend's pair."""


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
    with pair(servers, Engine.SGLANG, backend, *MORE.get(backend, ()), alone=backend == SPAWNED) as made:
        yield made
