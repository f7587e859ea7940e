"""The conformance suite on the real NIXL engine, with UCX's own choice of transports and over TCP."""

from __future__ import annotations

import pytest

from pdcore.testing import BackendConformance, Target


class TestNixl(BackendConformance):
    @pytest.fixture
    def target(self) -> Target:
        return Target("nixl")


class TestNixlTcp(BackendConformance):
    @pytest.fixture
    def target(self) -> Target:
        return Target("nixl_tcp")
