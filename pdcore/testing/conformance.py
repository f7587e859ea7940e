"""The suite as one class of tests; an author overrides its fixture ``target``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

pytest.register_assert_rewrite("pdcore.testing.groups", "pdcore.testing.ends", "pdcore.testing.serving")

from pdcore.testing.engines import EnginesUnderTest, FarProcessPool  # noqa: E402
from pdcore.testing.groups.concurrency import Concurrency  # noqa: E402
from pdcore.testing.groups.contract import Contract  # noqa: E402
from pdcore.testing.groups.deadlines import Deadlines  # noqa: E402
from pdcore.testing.groups.death import PeerDeath  # noqa: E402
from pdcore.testing.groups.hygiene import Hygiene  # noqa: E402
from pdcore.testing.groups.lifetime import Lifetime  # noqa: E402
from pdcore.testing.groups.limits import EngineLimits  # noqa: E402
from pdcore.testing.groups.promises import Promises  # noqa: E402
from pdcore.testing.groups.quiescing import Quiescing  # noqa: E402
from pdcore.testing.groups.rooms import RoomsEnd  # noqa: E402
from pdcore.testing.groups.shapes import Shapes  # noqa: E402
from pdcore.testing.rules import Rule  # noqa: E402
from pdcore.testing.target import Target  # noqa: E402

__all__ = ["BackendConformance"]

CLOSES = Rule(
    "an engine can be closed within its patience, whatever became of it and its peers",
    "close() waits for a peer that is gone, or raises for it",
)


class BackendConformance(
    Hygiene,
    RoomsEnd,
    Concurrency,
    PeerDeath,
    Promises,
    Quiescing,
    Deadlines,
    EngineLimits,
    Shapes,
    Lifetime,
    Contract,
):
    """All groups; pytest runs those of the last base first.

    A test whose subject is a capability proves it, or proves that it is refused.
    """

    far_processes: ClassVar[FarProcessPool]

    @classmethod
    def setup_class(cls) -> None:
        """Keep far processes for all tests of the class."""
        cls.far_processes = FarProcessPool()

    @classmethod
    def teardown_class(cls) -> None:
        """End and reap them."""
        cls.far_processes.end()

    @pytest.fixture
    def target(self) -> Target:
        """Return the backend under test: to be overridden."""
        raise NotImplementedError("override the fixture 'target' to return pdcore.testing.Target(NAME)")

    @pytest.fixture
    def engines(self, target: Target) -> Iterator[EnginesUnderTest]:
        """Near and far engines of one test."""
        engines = EnginesUnderTest(target, self.far_processes)
        yield engines
        with CLOSES:
            engines.end()
