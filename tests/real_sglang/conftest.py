"""Which engine the fixtures start."""

from __future__ import annotations

import pytest
from serving.engines import Engine
from serving.fixtures import pytest_collection_modifyitems, running, servers, started_reference, wanted

__all__ = ["engine", "pytest_collection_modifyitems", "running", "servers", "started_reference", "wanted"]


@pytest.fixture(scope="session")
def engine() -> Engine:
    """What all servers of this folder are."""
    return Engine.SGLANG
