"""The conformance suite: what every backend must do, run against real processes and real bytes.

It has these groups, and each failure names the rule that was broken and what usually causes it:

``contract``     what an engine says of itself, and how it takes memory or refuses it by name
``lifetime``     start, registration, close, fork; no thread stays behind
``shapes``       batches of all shapes: the right bytes arrive, and nothing else is touched
``limits``       what is declared to fit through the engine at once does, from several threads too
``deadlines``    every wait ends by its deadline, whatever the peer is, and holds up no other
``quiescing``    whether bytes may still land: what DONE, revoke and close promise
``promises``     each declared capability where it would show if it were not so, with a receiver that is
                 stopped while the pipes are full, and addresses outside the regions
``death``        a peer that dies takes only its own transfers along, and can come back
``concurrency``  several threads, several peers, one engine
``rooms``        the backend under the two managers, in both transfer models
``hygiene``      importing the plugin's module costs nothing

A capability that is declared is proven; one that is not is shown to be refused or not relied upon. Nothing is
skipped. An author runs ``pdcore conform NAME``, where each test has a time limit and an engine that crashes
its process fails one test only, or has the suite run with the backend's own tests::

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
