"""The module that ``pdcore conform`` hands to pytest; the target comes from its plugin."""

from __future__ import annotations

import pytest

from pdcore.testing.conformance import BackendConformance
from pdcore.testing.target import Target


class TestConformance(BackendConformance):
    """The suite, for the target named on the command line."""

    @pytest.fixture
    def target(self, conform_target: Target) -> Target:
        return conform_target
