from __future__ import annotations

import itertools

import attrs
import pytest

from pdcore.errors import LayoutError
from pdcore.topology import Topology, map_ranks, topology_misfits


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
    with pytest.raises(LayoutError) as caught:
        Topology(**{f"{axis}_size": size, f"{axis}_rank": rank})
    assert caught.value.happened == f"{axis}_rank {rank} does not exist"
    assert caught.value.there_is == f"{axis}_size is {size}"
    assert caught.value.to_do == f"use {axis}_size >= 1 and 0 <= {axis}_rank < {axis}_size"


def test_every_axis_that_differs_is_listed() -> None:
    prefill, decode = Topology(tp_size=2, cp_size=4), Topology(pp_size=3)
    found = topology_misfits(prefill, decode)
    assert [(m.field, m.prefill, m.decode) for m in found] == [
        ("topology.tp_size", "2", "1"),
        ("topology.pp_size", "1", "3"),
        ("topology.cp_size", "4", "1"),
    ]
    assert all(m.change.startswith(f"use the same {m.field.partition('.')[2]}") for m in found)


def test_ranks_and_data_parallelism_may_differ() -> None:
    decode = Topology(tp_size=2, tp_rank=1, dp_size=8, dp_rank=7)
    assert topology_misfits(attrs.evolve(decode, tp_rank=0, dp_size=1, dp_rank=0), decode) == ()


def test_a_decode_rank_pairs_with_its_own_number() -> None:
    mapping = map_ranks(Topology(tp_size=2, tp_rank=1, pp_size=2, pp_rank=0))
    assert (mapping.prefill_ranks, mapping.required_responses, mapping.required_destinations) == ((2,), 1, 1)
