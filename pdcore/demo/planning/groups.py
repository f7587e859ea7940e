"""How many ranks the demo starts on each side, and which of them serve a request."""

from __future__ import annotations

import attrs

from pdcore.model import Role, RoomId
from pdcore.pairing.topology import DPChoice, Topology, dp_rank_of

__all__ = ["AXES", "Groups", "group_of", "sizes"]

AXES = ("tp", "pp", "cp", "dp")
MOST_RANKS = 64


@attrs.frozen
class Groups:
    """The sizes of both groups, each as its first rank; ``dp`` is how decode learns the prefill replica."""

    prefill: Topology = attrs.field(factory=Topology)
    decode: Topology = attrs.field(factory=Topology)
    dp: DPChoice = DPChoice.BY_ROOM

    def replicas(self, role: Role) -> tuple[tuple[Topology, ...], ...]:
        """Return the ranks of each DP replica of a side."""
        first = self.prefill if role is Role.PREFILL else self.decode
        return tuple(attrs.evolve(first, dp_rank=n).replica() for n in range(first.dp_size))

    def ranks(self, role: Role) -> tuple[Topology, ...]:
        """Return all ranks of a side."""
        return tuple(rank for replica in self.replicas(role) for rank in replica)

    def dp_rank(self, role: Role, room: RoomId) -> int:
        """Return the DP replica of a side that serves a room: in time, each pair of replicas meets.

        A room that decode asks for is not where the rule by room would have it.
        """
        if role is Role.PREFILL:
            shift = 1 if self.dp is DPChoice.QUERY else 0
            return dp_rank_of(RoomId(room + shift), self.prefill.dp_size)
        return room // self.prefill.dp_size % self.decode.dp_size

    def as_data(self) -> dict[str, dict[str, int]]:
        """Return the sizes of both groups, for JSON."""
        return {
            role.value: {axis: getattr(self.ranks(role)[0], f"{axis}_size") for axis in AXES}
            | {"ranks": len(self.ranks(role))}
            for role in Role
        }

    def __str__(self) -> str:
        return ", ".join(
            f"{role.value} {len(self.ranks(role))} ({sizes(self.ranks(role)[0])})" for role in Role
        )


def sizes(group: Topology) -> str:
    """Return the axes along which a group has several ranks: ``tp=2,pp=2``."""
    several = [f"{a}={n}" for a in AXES if (n := getattr(group, f"{a}_size")) > 1]
    return ",".join(several) or "tp=1"


def group_of(text: str) -> Topology:
    """Return the first rank of the group that a text such as ``tp=2,pp=2`` describes.

    Raises:
        ValueError: it is of another form, or the group has more than 64 ranks.
    """
    counts = {}
    for part in text.split(","):
        axis, _, number = part.strip().partition("=")
        if axis not in AXES or axis in counts or not number.isdecimal() or int(number) < 1:
            raise ValueError(f"{text!r} is not of the form tp=N,pp=N,cp=N,dp=N (any of them, N at least 1)")
        counts[axis] = int(number)
    tp, pp, cp, dp = (counts.get(axis, 1) for axis in AXES)
    group = Topology(tp_size=tp, pp_size=pp, cp_size=cp, dp_size=dp)
    if (ranks := group.group_size * group.dp_size) > MOST_RANKS:
        raise ValueError(f"{text!r} makes {ranks} ranks, and the demo starts {MOST_RANKS} at most")
    return group
