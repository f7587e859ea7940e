"""The suite as one class of tests; an author overrides its fixture ``target``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

pytest.register_assert_rewrite("pdcore.testing.groups", "pdcore.testing.ends", "pdcore.testing.serving")

from pdcore.testing.groups.concurrency import Concurrency  # noqa: E402
from pdcore.testing.groups.contract import Contract  # noqa: E402
from pdcore.testing.groups.deadlines import Deadlines  # noqa: E402
from pdcore.testing.groups.death import PeerDeath  # noqa: E402
from pdcore.testing.groups.hygiene import Hygiene  # noqa: E402
from pdcore.testing.groups.lifetime import Lifetime  # noqa: E402
from pdcore.testing.groups.limits import Limits  # noqa: E402
from pdcore.testing.groups.promises import Promises  # noqa: E402
from pdcore.testing.groups.quiescing import Quiescing  # noqa: E402
from pdcore.testing.groups.rooms import Rooms  # noqa: E402
from pdcore.testing.groups.shapes import Shapes  # noqa: E402
from pdcore.testing.rules import Rule  # noqa: E402
from pdcore.testing.stage import Crowd, Setting  # noqa: E402
from pdcore.testing.target import Target  # noqa: E402

__all__ = ["BackendConformance"]

CLOSES = Rule(
    "an engine can be closed within its patience, whatever became of it and its peers",
    "close() waits for a peer that is gone, or raises for it",
)


class BackendConformance(
    Hygiene, Rooms, Concurrency, PeerDeath, Promises, Quiescing, Deadlines, Limits, Shapes, Lifetime, Contract
):
    """All groups; pytest runs those of the last base first.

    A test whose subject is a capability proves it, or proves that it is refused.
    """

    crowd: ClassVar[Crowd]

    @classmethod
    def setup_class(cls) -> None:
        """Keep far processes for all tests of the class."""
        cls.crowd = Crowd()

    @classmethod
    def teardown_class(cls) -> None:
        """End and reap them."""
        cls.crowd.end()

    @pytest.fixture
    def target(self) -> Target:
        """Return the backend under test: to be overridden."""
        raise NotImplementedError("override the fixture 'target' to return pdcore.testing.Target(NAME)")

    @pytest.fixture
    def stage(self, target: Target) -> Iterator[Setting]:
        """Near and far engines of one test."""
        stage = Setting(target, self.crowd)
        yield stage
        with CLOSES:
            stage.end()
