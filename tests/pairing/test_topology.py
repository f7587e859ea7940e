from __future__ import annotations

import itertools
from typing import Any

import attrs
import pytest

from pdcore.errors import LayoutError
from pdcore.model import RoomId
from pdcore.pairing.topology import (
    CPSenders,
    RankMapping,
    Share,
    Topology,
    dp_rank_of,
    kv_share,
    map_ranks,
    served_ranks,
    state_share,
    topology_misfits,
)


@pytest.mark.parametrize(("tp", "pp", "cp"), [(1, 1, 1), (4, 1, 1), (2, 3, 2), (1, 4, 2)])
def test_unique_ranks_number_a_replica_from_zero_without_gaps(tp: int, pp: int, cp: int) -> None:
    ranks = [
        Topology(tp_size=tp, tp_rank=t, pp_size=pp, pp_rank=p, cp_size=cp, cp_rank=c)
        for t, p, c in itertools.product(range(tp), range(pp), range(cp))
    ]
    assert [rank.unique_rank for rank in ranks] == list(range(tp * pp * cp))
    assert {rank.group_size for rank in ranks} == {tp * pp * cp}


def test_data_parallelism_does_not_number_ranks() -> None:
    topology = Topology(dp_size=4, dp_rank=3)
    assert (topology.unique_rank, topology.group_size) == (0, 1)


@pytest.mark.parametrize("axis", ["tp", "pp", "cp", "dp"])
@pytest.mark.parametrize(("size", "rank"), [(2, 2), (2, -1), (0, 0), (-1, 0)])
def test_a_rank_that_does_not_exist_is_refused(axis: str, size: int, rank: int) -> None:
    place: dict[str, Any] = {f"{axis}_size": size, f"{axis}_rank": rank}
    with pytest.raises(LayoutError) as caught:
        Topology(**place)
    assert caught.value.happened == f"{axis}_rank {rank} does not exist"
    assert caught.value.there_is == f"{axis}_size is {size}"
    assert caught.value.to_do == f"use {axis}_size >= 1 and 0 <= {axis}_rank < {axis}_size"


def test_a_replica_lists_its_ranks_by_unique_rank() -> None:
    ranks = Topology(tp_size=2, pp_size=3, cp_size=2, pp_rank=1, dp_size=4, dp_rank=3).replica()
    assert [rank.unique_rank for rank in ranks] == list(range(12))
    assert {rank.dp_rank for rank in ranks} == {3}


# What can be paired


def test_every_illegal_axis_is_listed_with_the_legal_sizes() -> None:
    prefill, decode = Topology(tp_size=3, pp_size=2, cp_size=4), Topology(tp_size=2, pp_size=3, cp_size=2)
    assert [(m.field, m.prefill, m.decode, m.change) for m in topology_misfits(prefill, decode, 8)] == [
        (
            "topology.tp_size",
            "3",
            "2",
            "use the same tp_size on both sides, or on each 1, 2, 4 or a multiple of 8 "
            "(the model has 8 KV heads)",
        ),
        ("topology.pp_size", "2", "3", "use pp_size 1 or 2 on the decode side"),
        ("topology.cp_size", "4", "2", "use cp_size 1 on the decode side"),
    ]


@pytest.mark.parametrize(
    ("prefill", "decode", "units"),
    [(4, 2, 8), (2, 4, 8), (8, 2, 4), (3, 2, 1), (3, 2, 12), (16, 8, 8), (3, 3, 8), (5, 5, 2), (16, 1, 4)],
)
def test_tp_sizes_are_equal_or_divide_the_heads_or_multiply_them(
    prefill: int, decode: int, units: int
) -> None:
    assert topology_misfits(Topology(tp_size=prefill), Topology(tp_size=decode), units) == ()


@pytest.mark.parametrize(("prefill", "decode", "units"), [(3, 2, 8), (2, 3, 8), (12, 8, 8), (1, 3, 2)])
def test_other_tp_sizes_would_split_a_head(prefill: int, decode: int, units: int) -> None:
    (misfit,) = topology_misfits(Topology(tp_size=prefill), Topology(tp_size=decode), units)
    assert misfit.field == "topology.tp_size"


def test_tp_sizes_must_suit_the_heads_of_every_layer() -> None:
    assert topology_misfits(Topology(tp_size=4), Topology(tp_size=8), 8, 4, 1) == ()
    (misfit,) = topology_misfits(Topology(tp_size=3), Topology(tp_size=6), 6, 4, 1)
    assert misfit.change == (
        "use the same tp_size on both sides, or on each 1, 2 or a multiple of 12 "
        "(the model has 4 and 6 KV heads)"
    )


def test_a_stranger_with_many_heads_does_not_have_all_sizes_tried() -> None:
    (misfit,) = topology_misfits(Topology(tp_size=3), Topology(tp_size=2), 2**61)
    assert "512 or a multiple of 2305843009213693952" in misfit.change


@pytest.mark.parametrize(("prefill", "decode"), [(1, 1), (2, 1), (4, 4), (4, 1)])
def test_pipelines_are_equal_or_end_in_one_decode_stage(prefill: int, decode: int) -> None:
    assert topology_misfits(Topology(pp_size=prefill), Topology(pp_size=decode), 8) == ()


def test_data_and_prefill_context_parallelism_may_differ() -> None:
    prefill = Topology(cp_size=4, cp_rank=3, dp_size=2)
    assert topology_misfits(prefill, Topology(dp_size=8, dp_rank=7), 8) == ()


# Who sends what


def mappings(prefill: Topology, decode: Topology, *units: int, sharded: bool = False) -> list[RankMapping]:
    return [map_ranks(prefill, rank, *units, sharded_state=sharded) for rank in decode.replica()]


def test_in_equal_groups_every_rank_pairs_with_its_own_number() -> None:
    group = Topology(tp_size=3, pp_size=2)
    found = mappings(group, group, 8)
    assert found == [RankMapping((rank,), (), rank) for rank in range(6)]
    assert all(mapping.required_responses == 1 for mapping in found)
    assert [served_ranks(rank, group, 8) for rank in group.replica()] == [(rank,) for rank in range(6)]


def test_tp_4_to_2_needs_two_responses_each() -> None:
    prefill, decode = Topology(tp_size=4), Topology(tp_size=2)
    assert [m.prefill_ranks for m in mappings(prefill, decode, 8)] == [(0, 1), (2, 3)]
    share = kv_share(attrs.evolve(prefill, tp_rank=3), attrs.evolve(decode, tp_rank=1), 8)
    assert share == Share(0, 2, 2, 4, 2)


def test_tp_2_to_4_has_every_prefill_rank_serve_two() -> None:
    prefill, decode = Topology(tp_size=2), Topology(tp_size=4)
    assert [m.prefill_ranks for m in mappings(prefill, decode, 8)] == [(0,), (0,), (1,), (1,)]
    assert [served_ranks(rank, decode, 8) for rank in prefill.replica()] == [(0, 1), (2, 3)]
    assert kv_share(attrs.evolve(prefill, tp_rank=1), attrs.evolve(decode, tp_rank=3), 8) == Share(
        2, 4, 0, 2, 2
    )


def test_tp_3_to_2_with_12_heads_cuts_across_ranks() -> None:
    found = mappings(Topology(tp_size=3), Topology(tp_size=2), 12)
    assert [m.prefill_ranks for m in found] == [(0, 1), (1, 2)]


def test_of_replicated_heads_one_replica_sends_and_the_other_is_a_dummy() -> None:
    prefill, decode = Topology(tp_size=8), Topology(tp_size=2)
    found = mappings(prefill, decode, 4)
    assert [(m.prefill_ranks, m.dummies) for m in found] == [((0, 2), (1, 3)), ((4, 6), (5, 7))]
    assert [served_ranks(rank, decode, 4) for rank in prefill.replica()] == [(0,)] * 4 + [(1,)] * 4


def test_a_rank_sends_if_any_of_its_buffers_is_to_be_sent() -> None:
    prefill, decode = Topology(tp_size=8), Topology(tp_size=2)
    assert mappings(prefill, decode, 4, 8) == mappings(prefill, decode, 8)
    assert mappings(prefill, decode, 4, 1)[0] == RankMapping((0, 2), (1, 3), 0)
    assert mappings(prefill, decode, 1)[0] == RankMapping((0,), (1, 2, 3), 0)
    assert served_ranks(attrs.evolve(prefill, tp_rank=1), decode, 4, 8) == (0,)


def test_replicas_take_a_share_of_the_decode_replicas_each() -> None:
    found = mappings(Topology(tp_size=4), Topology(tp_size=8), 2)
    assert [m.prefill_ranks for m in found] == [(0,), (0,), (1,), (1,), (2,), (2,), (3,), (3,)]
    assert not any(m.dummies for m in found)


def test_of_latent_replicas_one_sends_and_the_others_are_dummies() -> None:
    (mapping,) = mappings(Topology(tp_size=4), Topology(), 1)
    assert mapping == RankMapping((0,), (1, 2, 3), 0)
    found = mappings(Topology(tp_size=4), Topology(tp_size=2), 1)
    assert [(m.prefill_ranks, m.dummies) for m in found] == [((0,), (1,)), ((2,), (3,))]
    wider = mappings(Topology(tp_size=2), Topology(tp_size=4), 1)
    assert [(m.prefill_ranks, m.dummies) for m in wider] == [((0,), ()), ((0,), ()), ((1,), ()), ((1,), ())]


def test_a_latent_replica_sends_its_part_of_sharded_state() -> None:
    (mapping,) = mappings(Topology(tp_size=4), Topology(), 1, sharded=True)
    assert mapping == RankMapping((0, 1, 2, 3), (), 0)
    shares = [state_share(rank, Topology(), 4) for rank in Topology(tp_size=4).replica()]
    assert shares == [Share(0, 1, rank, 4, 1) for rank in range(4)]


def test_one_decode_stage_needs_all_prefill_stages_and_takes_aux_from_the_last() -> None:
    (mapping,) = mappings(Topology(tp_size=2, pp_size=2), Topology(), 8)
    assert mapping == RankMapping((0, 1, 2, 3), (), 1)


def test_equal_pipelines_pair_stage_by_stage_and_dummies_stay_in_theirs() -> None:
    found = mappings(Topology(tp_size=2, pp_size=2), Topology(pp_size=2), 1)
    assert [(m.prefill_ranks, m.dummies, m.aux_rank) for m in found] == [((0,), (2,), 0), ((1,), (3,), 1)]


def test_all_context_parallel_ranks_send_or_only_the_first() -> None:
    prefill = Topology(tp_size=2, cp_size=2)
    (everyone,) = mappings(prefill, Topology(), 8)
    assert everyone == RankMapping((0, 1, 2, 3), (), 0)
    (first,) = mappings(attrs.evolve(prefill, cp_senders=CPSenders.RANK_0), Topology(), 8)
    assert first == RankMapping((0, 2), (1, 3), 0)


def test_state_comes_from_context_parallel_rank_0_alone() -> None:
    shares = [state_share(rank, Topology(), 1) for rank in Topology(cp_size=2).replica()]
    assert shares == [Share(0, 1, 0, 1, 1), None]


def test_a_whole_share_is_all_that_the_one_has_and_the_other_needs() -> None:
    assert Share(0, 2, 0, 2, 2).whole
    assert not Share(0, 2, 0, 4, 2).whole
    assert not Share(2, 4, 0, 2, 2).whole


def test_a_room_chooses_the_prefill_replica() -> None:
    assert [dp_rank_of(RoomId(room), 3) for room in (0, 1, 2, 3, 2**62)] == [0, 1, 2, 0, 2**62 % 3]
