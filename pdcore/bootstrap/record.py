"""What a prefill rank tells the bootstrap service about itself."""

from __future__ import annotations

import attrs
from attrs.validators import matches_re

from pdcore.config import HOST
from pdcore.model import Incarnation, RoomId
from pdcore.topology import DPChoice, Topology

__all__ = ["RankGroup", "RankRecord", "Refusal", "ReplicaQuery", "RoomsRecord"]


@attrs.frozen
class RankRecord:
    """One registered prefill rank: its control ``address`` (host:port), and for how long to believe it.

    The rank renews within ``lease`` seconds from its control thread; one that doesn't is stale.
    """

    incarnation: Incarnation
    address: str = attrs.field(validator=matches_re(HOST + ":[0-9]{1,5}"))
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


@attrs.frozen
class RoomsRecord:
    """The prefill DP rank that took these rooms."""

    rooms: tuple[RoomId, ...]
    dp_rank: int


@attrs.frozen
class ReplicaQuery:
    """Which DP replica is asked for: one by its rank, or that of a room."""

    choice: int | DPChoice
    room: RoomId

    @property
    def parameters(self) -> dict[str, str]:
        """The query of the HTTP request."""
        if isinstance(self.choice, DPChoice):
            return {"room": str(self.room), "choice": self.choice.value}
        return {"dp_rank": str(self.choice)}

    def __str__(self) -> str:
        if isinstance(self.choice, DPChoice):
            return f"the prefill DP rank of room {self.room}"
        return f"prefill DP rank {self.choice}"
