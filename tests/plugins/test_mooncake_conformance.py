"""The conformance suite on the real Mooncake engine, over TCP."""

from __future__ import annotations

import pytest

from pdcore.testing import BackendConformance, Target


class TestMooncakeTcp(BackendConformance):
    @pytest.fixture
    def target(self) -> Target:
        return Target("mooncake_tcp", {"transfer_timeout": 5.0})
