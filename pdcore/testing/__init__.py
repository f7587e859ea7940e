"""The conformance suite: what every backend must do, run against real processes and real bytes.

An author runs ``pdcore conform NAME``, or has the suite run with the backend's own tests::

    from pdcore.testing import BackendConformance, Target

    class TestConformance(BackendConformance):
        @pytest.fixture
        def target(self) -> Target:
            return Target("mine", {"an_option": 1})

Needs pytest: ``pip install "pdcore[testing]"``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdcore.testing.target import Target

if TYPE_CHECKING:
    from pdcore.testing.conformance import BackendConformance

__all__ = ["BackendConformance", "Target"]


def __getattr__(name: str) -> object:
    # The far side's process lives in this package too and must not import pytest.
    if name == "BackendConformance":
        from pdcore.testing.conformance import BackendConformance

        return BackendConformance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
