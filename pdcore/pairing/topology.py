"""Which prefill ranks a decode rank pairs with, and what each sends. Pure functions of both groups."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from enum import Enum

import attrs

from pdcore.checks.fields import integer, member
from pdcore.errors import LayoutError, Misfit
from pdcore.model import RoomId

__all__ = [
    "CPSenders",
    "DPChoice",
    "RankMapping",
    "Share",
    "Topology",
    "dp_rank_of",
    "held_units",
    "kv_share",
    "legal_tp",
    "map_ranks",
    "served_ranks",
    "state_share",
    "topology_misfits",
]


MOST_NAMED = 1024
"""TP sizes from here on are not named as legal ones: the units may be a stranger's."""


class CPSenders(Enum):
    """Which context-parallel ranks of a prefill group send KV; after prefill each of them holds all of it."""

    ALL_RANKS = "all_ranks"
    RANK_0 = "rank_0"


class DPChoice(Enum):
    """How decode learns which prefill DP rank has a room: by the rule of :func:`dp_rank_of`, or by asking the
    bootstrap service, where prefill told it (``register_dp_rank``)."""

    BY_ROOM = "by_room"
    QUERY = "query"


@attrs.frozen
class Topology:
    """The place of one rank in its group: tensor, pipeline, context and data parallelism.

    ``tp_size`` counts within one DP replica. ``cp_senders`` matters on the prefill side only.
    """

    tp_size: int = attrs.field(default=1, validator=integer)
    tp_rank: int = attrs.field(default=0, validator=integer)
    pp_size: int = attrs.field(default=1, validator=integer)
    pp_rank: int = attrs.field(default=0, validator=integer)
    cp_size: int = attrs.field(default=1, validator=integer)
    cp_rank: int = attrs.field(default=0, validator=integer)
    dp_size: int = attrs.field(default=1, validator=integer)
    dp_rank: int = attrs.field(default=0, validator=integer)
    cp_senders: CPSenders = attrs.field(default=CPSenders.ALL_RANKS, validator=member(CPSenders))

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

    def replica(self) -> tuple[Topology, ...]:
        """Return all ranks of this rank's DP replica, by unique rank."""
        places = itertools.product(range(self.tp_size), range(self.pp_size), range(self.cp_size))
        return tuple(attrs.evolve(self, tp_rank=tp, pp_rank=pp, cp_rank=cp) for tp, pp, cp in places)


@attrs.frozen
class Share:
    """The units that one prefill rank copies to one decode rank: ``count`` neighbours.

    A *unit* is a smallest part that tensor parallelism deals out: a KV head, the whole latent, or a
    fraction of a sharded state. The prefill rank holds ``prefill_count`` units and sends those from
    ``prefill_first`` on; the decode rank holds ``decode_count`` and gets them from ``decode_first`` on.
    """

    prefill_first: int
    prefill_count: int
    decode_first: int
    decode_count: int
    count: int

    @property
    def whole(self) -> bool:
        """Whether all that the one holds is all that the other needs."""
        return self.count == self.prefill_count == self.decode_count


@attrs.frozen
class RankMapping:
    """What one decode rank needs of a prefill group, by unique rank in rising order.

    ``prefill_ranks`` send to it. ``dummies`` send to nobody in this decode group (replicas of what
    another rank sends): this decode rank alone tells them so for each room, and waits for no answer.
    ``aux_rank`` is the sender whose aux row counts: the lowest of the last pipeline stage.
    """

    prefill_ranks: tuple[int, ...]
    dummies: tuple[int, ...]
    aux_rank: int

    @property
    def required_responses(self) -> int:
        """How many prefill ranks must report success."""
        return len(self.prefill_ranks)


@attrs.frozen
class _Shard:
    """The units of one TP rank, and which of ``replicas`` ranks with the same units it is."""

    first: int
    count: int
    replica: int
    replicas: int

    @classmethod
    def of(cls, topology: Topology, units: int) -> _Shard:
        size, rank = topology.tp_size, topology.tp_rank
        if size <= units:
            return cls(rank * (units // size), units // size, 0, 1)
        replicas = size // units
        return cls(rank // replicas, 1, rank % replicas, replicas)


def dp_rank_of(room: RoomId, dp_size: int) -> int:
    """Return the prefill DP rank that a router gives a room when nobody says otherwise.

    The rule is SGLang's ``bootstrap_room % dp_size``.
    """
    return room % dp_size


def held_units(prefill: Topology, decode: Topology, units: int) -> tuple[int, int]:
    """Return how many units a rank of either side holds; a legal pair is assumed.

    Between groups of equal TP every rank has one unit of its own, however many heads there are.
    """
    units = prefill.tp_size if prefill.tp_size == decode.tp_size else units
    return _Shard.of(prefill, units).count, _Shard.of(decode, units).count


def kv_share(prefill: Topology, decode: Topology, units: int) -> Share | None:
    """Return what a prefill rank sends of a KV buffer that both hold; None: nothing.

    ``units`` is what :func:`~pdcore.pairing.sharding.shared_units` says of the buffer. Over all prefill ranks
    of one pipeline stage and one context-parallel rank, a decode rank gets each of its units exactly once.
    """
    silent = prefill.cp_rank > 0 and prefill.cp_senders is CPSenders.RANK_0
    return None if silent else _share(prefill, decode, units)


def state_share(prefill: Topology, decode: Topology, units: int) -> Share | None:
    """Return what a prefill rank sends of a state buffer that both hold; None: nothing.

    ``units`` is :meth:`~pdcore.layout.state.StateBuffer.units_between`. Context-parallel rank 0 sends it.
    """
    return None if prefill.cp_rank > 0 else _share(prefill, decode, units)


def _share(prefill: Topology, decode: Topology, units: int) -> Share | None:
    if decode.pp_size > 1 and prefill.pp_rank != decode.pp_rank:
        return None
    units = prefill.tp_size if prefill.tp_size == decode.tp_size else units
    ours, theirs = _Shard.of(prefill, units), _Shard.of(decode, units)
    # Of several ranks with the same units one sends, another for each decode replica where there are enough.
    if ours.replica != theirs.replica * ours.replicas // theirs.replicas:
        return None
    first = max(ours.first, theirs.first)
    count = min(ours.first + ours.count, theirs.first + theirs.count) - first
    if count <= 0:
        return None
    return Share(first - ours.first, ours.count, first - theirs.first, theirs.count, count)


def served_ranks(
    prefill: Topology, decode: Topology, *units: int, sharded_state: bool = False
) -> tuple[int, ...]:
    """Return the decode ranks, by unique rank, that a prefill rank hears from for each room; never none.

    They are those that it sends KV or state to. A dummy hears from one that tells it to send nothing.
    ``decode`` is any rank of the decode group; ``units`` are the
    :attr:`~pdcore.layout.kv.KVLayout.units` of its buffers, and ``sharded_state`` tells whether it has a
    component with :attr:`~pdcore.layout.kv.StateComponent.sharded`. A rank that would send a buffer of some
    units counts as a sender, even where its own pipeline stage has no such buffer. Whatever the units are,
    the rank in whose part of the heads a decode rank's begins is a sender: buffers of fewer units come
    from ranks that send anyway.
    """
    served = [rank.unique_rank for rank in decode.replica() if _sends(prefill, rank, units, sharded_state)]
    return tuple(served) or (_teller(prefill, decode),)


def _teller(prefill: Topology, decode: Topology) -> int:
    stage = prefill.pp_rank if decode.pp_size > 1 else 0
    place = prefill.tp_rank * decode.tp_size // prefill.tp_size
    return attrs.evolve(decode, tp_rank=place, pp_rank=stage, cp_rank=0).unique_rank


def _sends(prefill: Topology, decode: Topology, units: Sequence[int], sharded_state: bool) -> bool:
    if any(kv_share(prefill, decode, count) is not None for count in units):
        return True
    finest = math.lcm(prefill.tp_size, decode.tp_size)
    return sharded_state and state_share(prefill, decode, finest) is not None


def map_ranks(prefill: Topology, decode: Topology, *units: int, sharded_state: bool = False) -> RankMapping:
    """Return what the decode rank ``decode`` needs of the group of which ``prefill`` is any rank.

    ``units`` and ``sharded_state`` are those of :func:`served_ranks`, of the decode rank's layout. A pure
    function of both sides' descriptions, like :func:`served_ranks`, so that they agree. The pair must be
    without :func:`topology_misfits`. The rule is SGLang's, but a head is sent once.
    """
    senders: list[Topology] = []
    dummies: list[int] = []
    decodes = decode.replica()
    for rank in prefill.replica():
        if _sends(rank, decode, units, sharded_state):
            senders.append(rank)
        elif _teller(rank, decode) == decode.unique_rank and not any(
            _sends(rank, other, units, sharded_state) for other in decodes
        ):
            dummies.append(rank.unique_rank)
    last = max(rank.pp_rank for rank in senders)
    aux_rank = next(rank.unique_rank for rank in senders if rank.pp_rank == last)
    return RankMapping(tuple(rank.unique_rank for rank in senders), tuple(dummies), aux_rank)


def legal_tp(sizes: Sequence[int], units: int) -> bool:
    """Whether groups of these TP sizes can share out ``units`` units: they are equal, or each divides
    ``units`` or is a multiple of it."""
    return len(set(sizes)) == 1 or not any(units % size and size % units for size in sizes)


def topology_misfits(prefill: Topology, decode: Topology, *units: int) -> tuple[Misfit, ...]:
    """Return every axis in which the two groups cannot be paired, with the legal sizes; empty: they can.

    TP sizes are equal, or each divides the ``units`` (the KV heads) of each buffer or is a multiple of
    them; PP is equal, or 1 on the decode side; CP is 1 on the decode side; DP may differ.
    """
    out = []
    tp = (prefill.tp_size, decode.tp_size)
    if not all(legal_tp(tp, count) for count in units):
        most, every = min(max(units), MOST_NAMED), math.lcm(*units)
        smaller = [n for n in range(1, most) if all(legal_tp((n, every), count) for count in units)]
        change = (
            f"use the same tp_size on both sides, or on each {', '.join(map(str, smaller))} or a multiple "
            f"of {every} (the model has {' and '.join(map(str, sorted(set(units) - {1})))} KV heads)"
        )
        out.append(_misfit("tp", *tp, change))
    if decode.pp_size not in (1, prefill.pp_size):
        sizes = " or ".join(map(str, sorted({1, prefill.pp_size})))
        out.append(_misfit("pp", prefill.pp_size, decode.pp_size, f"use pp_size {sizes} on the decode side"))
    if decode.cp_size != 1:
        out.append(_misfit("cp", prefill.cp_size, decode.cp_size, "use cp_size 1 on the decode side"))
    return tuple(out)


def _misfit(axis: str, prefill: int, decode: int, change: str) -> Misfit:
    return Misfit(f"topology.{axis}_size", str(prefill), str(decode), change)
