"""The conformance suite on the embedded backend, as an author runs it in tests."""

from __future__ import annotations

import pytest

from pdcore.testing import BackendConformance, Target


class TestLocal(BackendConformance):
    @pytest.fixture
    def target(self) -> Target:
        return Target("local")
