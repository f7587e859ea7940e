"""Which ranks there are on both sides of a world, and which of them sends to which."""

from __future__ import annotations

from enum import Enum
from functools import cache

import attrs

from pdcore.model import Role
from pdcore.pairing.topology import Topology
from pdcore.protocol.peer import Facts

__all__ = ["Mapping", "Shape"]


class Mapping(Enum):
    """Ranks of a prefill group to ranks of a decode group."""

    ONE_TO_ONE = (1, 1, False)
    TWO_TO_ONE = (2, 1, False)
    ONE_TO_TWO = (1, 2, False)
    TWO_TO_TWO = (2, 2, False)
    TWO_TO_ONE_OF_WHICH_ONE_SENDS = (2, 1, True)

    def __init__(self, prefill: int, decode: int, dummy: bool) -> None:
        self.prefill, self.decode, self.dummy = prefill, decode, dummy

    def ranks(self, role: Role) -> int:
        """Return how many ranks a group of one side has."""
        return self.prefill if role is Role.PREFILL else self.decode

    @cache
    def topology(self, role: Role, rank: int) -> Topology:
        """Return the place of a rank in its group."""
        return Topology(tp_size=self.ranks(role), tp_rank=rank)

    def part(self, rank: int) -> int:
        """Return the part of both groups that a rank belongs to: those of others say nothing to it."""
        return rank if self.prefill == self.decode else 0

    def senders(self, decode_rank: int) -> tuple[int, ...]:
        """Return the prefill ranks that send to a decode rank."""
        if self.dummy:
            return (0,)
        return (decode_rank,) if self.prefill == self.decode else tuple(range(self.prefill))

    def others(self, decode_rank: int) -> tuple[int, ...]:
        """Return those that are told and send nothing."""
        return (1,) if self.dummy else ()

    def facts(self, prefill_rank: int, decode_rank: int, *, rows: bool) -> Facts:
        """Return what a decode rank means to a prefill rank."""
        asking = tuple(
            rank for rank in range(self.decode) if prefill_rank in (*self.senders(rank), *self.others(rank))
        )
        first = prefill_rank == min(self.senders(decode_rank))
        return Facts(asking, prefill_rank in self.others(decode_rank), first, first and rows)


@attrs.frozen
class Shape:
    """How many groups there are on each side, and how their ranks map."""

    prefills: int = 1
    decodes: int = 1
    mapping: Mapping = Mapping.ONE_TO_ONE
