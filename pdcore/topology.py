"""Which prefill ranks a decode rank pairs with. Pure functions of the two parallel layouts."""

from __future__ import annotations

import attrs

from pdcore.errors import LayoutError, Misfit

__all__ = ["RankMapping", "Topology", "map_ranks", "topology_misfits"]


@attrs.frozen
class Topology:
    """The place of one rank in its group: tensor, pipeline, context and data parallelism."""

    tp_size: int = 1
    tp_rank: int = 0
    pp_size: int = 1
    pp_rank: int = 0
    cp_size: int = 1
    cp_rank: int = 0
    dp_size: int = 1
    dp_rank: int = 0

    def __attrs_post_init__(self) -> None:
        for axis in ("tp", "pp", "cp", "dp"):
            size, rank = getattr(self, f"{axis}_size"), getattr(self, f"{axis}_rank")
            if not 0 <= rank < size:
                raise LayoutError(
                    f"{axis}_rank {rank} does not exist",
                    f"{axis}_size is {size}",
                    f"use {axis}_size >= 1 and 0 <= {axis}_rank < {axis}_size",
                )

    @property
    def unique_rank(self) -> int:
        """The rank within its DP replica: ``tp * (pp_size * cp_size) + pp * cp_size + cp``.

        The rule is SGLang's ``_prefill_unique_rank``.
        """
        return self.tp_rank * (self.pp_size * self.cp_size) + self.pp_rank * self.cp_size + self.cp_rank

    @property
    def group_size(self) -> int:
        """Ranks in one DP replica."""
        return self.tp_size * self.pp_size * self.cp_size


@attrs.frozen
class RankMapping:
    """What one decode rank needs of a prefill group.

    ``prefill_ranks`` are the unique ranks to pair with, ``required_responses`` how many of them
    must report success, ``required_destinations`` how many decode ranks each of them serves.
    """

    prefill_ranks: tuple[int, ...]
    required_responses: int
    required_destinations: int


def topology_misfits(prefill: Topology, decode: Topology) -> tuple[Misfit, ...]:
    """Return every axis in which the two groups cannot be paired; empty means they can.

    This version pairs groups of equal TP, PP and CP; DP may differ.
    """
    return tuple(
        Misfit(
            f"topology.{axis}_size",
            str(getattr(prefill, f"{axis}_size")),
            str(getattr(decode, f"{axis}_size")),
            f"use the same {axis}_size on both sides (this version pairs equal groups only)",
        )
        for axis in ("tp", "pp", "cp")
        if getattr(prefill, f"{axis}_size") != getattr(decode, f"{axis}_size")
    )


def map_ranks(decode: Topology) -> RankMapping:
    """Return the mapping of a decode rank onto a prefill group of equal sizes: its own rank."""
    return RankMapping((decode.unique_rank,), 1, 1)
