"""What a prefill rank tells the bootstrap service about itself."""

from __future__ import annotations

import attrs

from pdcore.model import Incarnation
from pdcore.topology import Topology

__all__ = ["RankGroup", "RankRecord", "Refusal"]


@attrs.frozen
class RankRecord:
    """One registered prefill rank: its control ``address`` (host:port), and for how long to believe it.

    The rank renews within ``lease`` seconds from its control thread; one that doesn't is stale.
    """

    incarnation: Incarnation
    address: str
    topology: Topology
    lease: float


@attrs.frozen
class RankGroup:
    """All ranks of one DP replica, ordered by unique rank."""

    ranks: tuple[RankRecord, ...]


@attrs.frozen
class Refusal:
    """The body of every error response: the three parts of an error."""

    happened: str
    there_is: str
    to_do: str
