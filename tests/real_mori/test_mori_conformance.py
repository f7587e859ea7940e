"""The conformance suite on the real MORI-IO over an emulated NIC; its rooms run in both transfer models."""

from __future__ import annotations

import pytest

from pdcore.testing import BackendConformance, Target


class TestMori(BackendConformance):
    @pytest.fixture
    def target(self) -> Target:
        return Target("mori")
