"""State components: what is copied whole, what is cut, and what is refused with which words."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from oracle import Copy, copies, i64

from pdcore.contract.backend import StateRequest
from pdcore.errors import PlanError
from pdcore.layout.kv import Attention, StateBuffer, StateComponent
from pdcore.pairing.topology import Topology
from pdcore.plan import plan_state

MAMBA = StateComponent("mamba", 4, (StateBuffer("conv", 6), StateBuffer("ssm", 10)))
SWA = StateComponent("swa", 8, (StateBuffer("window", 32),))
CONV = StateBuffer("conv", 2 * 8 * 2, shape=(2, 8), slice_dim=1, groups=(2, 4, 2))
SSM = StateBuffer("ssm", 4 * 5 * 2, shape=(4, 5), slice_dim=0)
SLICED = StateComponent("mamba", 4, (CONV, SSM))
"""What one of two TP ranks holds: 16-bit elements; query, key and value blocks in every row of conv."""

HALF = StateComponent(
    "mamba",
    4,
    (
        StateBuffer("conv", 2 * 4 * 2, shape=(2, 4), slice_dim=1, groups=(1, 2, 1)),
        StateBuffer("ssm", 2 * 5 * 2, shape=(2, 5), slice_dim=0),
    ),
)
"""What one of four TP ranks holds of the same."""


def request(
    local: StateComponent,
    remote: StateComponent,
    prefill: Topology | None = None,
    decode: Topology | None = None,
    attention: Attention = Attention.HEADS,
) -> StateRequest:
    here = tuple(range(7, 7 + len(local.buffers)))
    there = tuple(range(3, 3 + len(remote.buffers)))
    return StateRequest(local, remote, here, there, prefill or Topology(), decode or Topology(), attention)


def planned(asked: StateRequest, local: list[int], remote: list[int]) -> list[Copy]:
    plan = plan_state(asked)
    assert plan.copier is not None, plan.refusal
    return copies(plan.copier(i64(local), i64(remote)))


def error_of(asked: StateRequest, local: list[int], remote: list[int]) -> PlanError:
    with pytest.raises(PlanError) as caught:
        planned(asked, local, remote)
    return caught.value


def tp(size: int, rank: int = 0) -> Topology:
    return Topology(tp_size=size, tp_rank=rank)


def test_a_slot_is_copied_buffer_by_buffer() -> None:
    assert planned(request(MAMBA, MAMBA), [2], [0]) == [(7, 3, 12, 0, 6), (8, 4, 20, 0, 10)]


def test_buffers_are_paired_by_name_whatever_their_order() -> None:
    turned = attrs.evolve(MAMBA, buffers=MAMBA.buffers[::-1])
    assert planned(request(MAMBA, turned), [2], [0]) == [(7, 4, 12, 0, 6), (8, 3, 20, 0, 10)]


def test_pages_are_merged_where_they_are_neighbours() -> None:
    found = planned(request(SWA, SWA), [1, 2, 5], [4, 5, 0])
    assert found == [(7, 3, 32, 128, 64), (7, 3, 160, 0, 32)]


def test_a_rank_of_four_fills_its_place_in_every_block_of_a_rank_of_two() -> None:
    # Rank 1 of 4 holds the second half of what rank 0 of 2 holds.
    found = planned(request(HALF, SLICED, tp(4, 1), tp(2, 0)), [1], [2])
    slot, there = 16, 64
    assert found == [
        (7, 3, slot + 0, there + 2, 2),
        (7, 3, slot + 2, there + 8, 4),
        (7, 3, slot + 6, there + 14, 2),
        (7, 3, slot + 8, there + 18, 2),
        (7, 3, slot + 10, there + 24, 4),
        (7, 3, slot + 14, there + 30, 2),
        (8, 4, 20, 80 + 20, 20),
    ]


def test_a_rank_of_two_gives_each_rank_of_four_its_half() -> None:
    found = planned(request(SLICED, HALF, tp(2, 1), tp(4, 3)), [0], [0])
    assert found[:2] == [(7, 3, 2, 0, 2), (7, 3, 8, 2, 4)]
    assert found[-1] == (8, 4, 20, 0, 20)
    assert sum(length for *_, length in found) == 16 + 20


@pytest.mark.parametrize(("prefill", "decode"), [(tp(4, 2), tp(2, 0)), (tp(2, 0), tp(4, 3))])
def test_ranks_that_share_nothing_copy_nothing(prefill: Topology, decode: Topology) -> None:
    local, remote = (HALF, SLICED) if prefill.tp_size == 4 else (SLICED, HALF)
    assert planned(request(local, remote, prefill, decode), [0], [0]) == []


def test_only_context_parallel_rank_0_sends_state() -> None:
    assert planned(request(MAMBA, MAMBA, Topology(cp_size=2, cp_rank=1)), [0], [0]) == []
    assert len(planned(request(MAMBA, MAMBA, Topology(cp_size=2, cp_rank=0)), [0], [0])) == 2


@pytest.mark.parametrize("kind", ["swa", "dsa"])
def test_page_lists_beside_a_latent_cache_are_sent_whole_by_one_of_the_ranks_that_hold_them(
    kind: str,
) -> None:
    pages = attrs.evolve(SWA, kind=kind)
    found = [
        planned(request(pages, pages, tp(4, rank), tp(1), Attention.LATENT), [1], [2]) for rank in range(4)
    ]
    assert found == [[(7, 3, 32, 64, 32)], [], [], []]


def test_a_stage_sends_the_buffers_that_it_holds_to_a_rank_that_holds_all() -> None:
    stage = attrs.evolve(MAMBA, buffers=MAMBA.buffers[1:])
    found = planned(request(stage, MAMBA, Topology(pp_size=2, pp_rank=1)), [2], [0])
    assert found == [(7, 4, 20, 0, 10)]
    empty = attrs.evolve(MAMBA, buffers=())
    assert planned(request(empty, MAMBA, Topology(pp_size=2)), [2], [0]) == []


@pytest.mark.parametrize(("here", "there"), [([], []), ([1, 2], [1, 2]), ([1], []), ([1, 2], [3])])
@pytest.mark.parametrize("sliced", [False, True])
def test_mamba_has_exactly_one_slot_on_each_side(here: list[int], there: list[int], sliced: bool) -> None:
    asked = request(HALF, SLICED, tp(4), tp(2)) if sliced else request(MAMBA, MAMBA)
    error = error_of(asked, here, there)
    assert error.happened == "state 'mamba' needs exactly one slot on each side"
    assert error.there_is == f"{len(here)} slots from prefill, {len(there)} from decode"
    assert error.to_do == "hand in the one slot index of the request"


def test_page_lists_of_different_lengths_are_an_error_and_never_cut() -> None:
    error = error_of(request(SWA, SWA), [1, 2, 3], [1, 2])
    assert error.happened == "state 'swa' indices of the two sides differ in number"
    assert error.there_is == "3 local and 2 remote indices"


@pytest.mark.parametrize("sliced", [False, True])
def test_a_slot_outside_the_pool_is_named(sliced: bool) -> None:
    asked = request(HALF, SLICED, tp(4), tp(2)) if sliced else request(MAMBA, MAMBA)
    error = error_of(asked, [4], [0])
    assert error.happened == "state 'mamba' indices leave the local pool"
    assert error.there_is == "1 of 1, the first is 4; the pool holds 4"


def test_a_kind_that_nobody_knows_is_a_list_of_items() -> None:
    other = attrs.evolve(SWA, kind="ring")
    assert planned(request(other, other), [0, 3], [1, 2]) == [(7, 3, 0, 32, 32), (7, 3, 96, 64, 32)]


def with_buffers(*buffers: StateBuffer) -> StateComponent:
    return StateComponent("mamba", 4, buffers)


BIGGER = attrs.evolve(SSM, item_len=160, shape=(8, 10))

REFUSED: list[tuple[StateRequest, str]] = [
    (request(MAMBA, attrs.evolve(MAMBA, kind="swa")), "state kind 'mamba' here, 'swa' there"),
    (
        request(MAMBA, attrs.evolve(MAMBA, buffers=(MAMBA.buffers[0], StateBuffer("ssm", 20)))),
        "state 'mamba' has item lengths (6, 10) here, (6, 20) there",
    ),
    (
        request(MAMBA, attrs.evolve(MAMBA, buffers=MAMBA.buffers[:1])),
        "state 'mamba' has buffers conv, ssm here, conv there",
    ),
    (
        request(attrs.evolve(MAMBA, buffers=()), MAMBA),
        "state 'mamba' has buffers none here, conv, ssm there",
    ),
    (
        request(MAMBA, attrs.evolve(MAMBA, buffers=MAMBA.buffers[:1]), Topology(pp_size=2)),
        "state 'mamba' has buffers conv, ssm here, conv there",
    ),
    (
        request(MAMBA, MAMBA, tp(2), tp(1)),
        "state 'mamba' does not say how TP ranks slice 'conv', so tp_size 2 cannot feed 1",
    ),
    (
        request(MAMBA, MAMBA, tp(2), tp(1), Attention.LATENT),
        "state 'mamba' does not say how TP ranks slice 'conv', so tp_size 2 cannot feed 1",
    ),
    (
        request(SWA, SWA, tp(1), tp(2)),
        "state 'swa' does not say how TP ranks slice 'window', so tp_size 1 cannot feed 2",
    ),
    (
        request(with_buffers(HALF.buffers[1]), with_buffers(BIGGER), tp(4), tp(2)),
        "state 'mamba' has another 'ssm': 80 bytes, shape (8, 5), slice_dim 0 here, "
        "320 bytes, shape (16, 10), slice_dim 0 there",
    ),
    (
        request(
            HALF, attrs.evolve(SLICED, buffers=(attrs.evolve(CONV, groups=(4, 2, 2)), SSM)), tp(4), tp(2)
        ),
        "state 'mamba' has another 'conv': 64 bytes, shape (2, 16), slice_dim 1, groups (4, 8, 4) here, "
        "64 bytes, shape (2, 16), slice_dim 1, groups (8, 4, 4) there",
    ),
]  # fmt: skip


HEADS = StateBuffer("k", 2 * 1 * 4, shape=(2, 1, 4), slice_dim=1, units=4)
"""A page of 2 tokens of one head of 4 bytes, of which the model has 4."""
SCALE = StateBuffer("scale", 6, units=1)


def pages_of(*buffers: StateBuffer) -> StateComponent:
    return StateComponent("swa", 8, buffers)


def heads_of(tp_size: int) -> StateBuffer:
    held = max(1, 4 // tp_size)
    return attrs.evolve(HEADS, item_len=8 * held, shape=(2, held, 4))


def test_pages_beside_heads_may_be_replicated_at_higher_tp() -> None:
    found = [
        planned(request(pages_of(heads_of(8)), pages_of(heads_of(2)), tp(8, rank), tp(2, 1)), [1], [2])
        for rank in range(8)
    ]
    # Ranks 4 and 6 of 8 have heads 2 and 3; rank 1 of 2 has both, token by token.
    assert found[4] == [(7, 3, 8, 32, 4), (7, 3, 12, 40, 4)]
    assert found[6] == [(7, 3, 8, 36, 4), (7, 3, 12, 44, 4)]
    assert [rank for rank in range(8) if found[rank]] == [4, 6]


def test_what_every_rank_holds_may_lie_beside_what_they_share_out() -> None:
    ours, theirs = pages_of(SCALE, heads_of(1)), pages_of(SCALE, heads_of(2))
    assert planned(request(ours, theirs, tp(1), tp(2, 1)), [1, 2], [4, 5]) == [
        (7, 3, 6, 24, 12),
        (8, 4, 32 + 8, 64, 8),
        (8, 4, 48 + 8, 72, 8),
        (8, 4, 64 + 8, 80, 8),
        (8, 4, 80 + 8, 88, 8),
    ]


def test_neighbours_with_gaps_between_them_are_not_merged() -> None:
    apart = pages_of(StateBuffer("window", 32, item_stride=40))
    assert planned(request(SWA, apart), [1, 2], [4, 5]) == [(7, 3, 32, 160, 32), (7, 3, 64, 200, 32)]


TURNED = attrs.evolve(HEADS, shape=(1, 2, 4), slice_dim=0)
REFUSED += [
    (
        request(pages_of(HEADS), pages_of(TURNED), tp(4), tp(4)),
        "state 'swa' has another 'k': 8 bytes, shape (2, 1, 4), slice_dim 1, 4 units here, "
        "8 bytes, shape (1, 2, 4), slice_dim 0, 4 units there",
    ),
    (
        request(pages_of(heads_of(4)), pages_of(attrs.evolve(heads_of(2), units=None)), tp(4), tp(2)),
        "state 'swa' has another 'k': 8 bytes, shape (2, 1, 4), slice_dim 1, 4 units here, "
        "16 bytes, shape (2, 2, 4), slice_dim 1 there",
    ),
    (
        request(pages_of(SCALE), pages_of(attrs.evolve(SCALE, item_len=8)), tp(4), tp(2)),
        "state 'swa' has another 'scale': 6 bytes, shape (), slice_dim None, 1 units here, "
        "8 bytes, shape (), slice_dim None, 1 units there",
    ),
    (
        request(pages_of(HEADS), pages_of(HEADS), tp(3), tp(2)),
        "state 'swa' has 4 units of 'k', which tp_size 3 and 2 cannot share out",
    ),
]


@pytest.mark.parametrize(("asked", "refusal"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_components_that_do_not_fit_are_refused_with_both_values(asked: StateRequest, refusal: str) -> None:
    plan = plan_state(asked)
    assert (plan.copier, plan.refusal) == (None, refusal)


def test_every_rank_of_a_group_gets_the_same_refusal() -> None:
    plans = [
        plan_state(request(SWA, SWA, tp(4, here), tp(2, there))) for here in range(4) for there in range(2)
    ]
    assert len({plan.refusal for plan in plans}) == 1
    assert not any(plan.copier for plan in plans)


def test_a_plan_of_pieces_is_of_plain_uint64() -> None:
    copier = plan_state(request(HALF, SLICED, tp(4, 1), tp(2, 0))).copier
    assert copier is not None
    batch = copier(i64([1]), i64([2]))
    batch.prove_inside(np.full(9, 64 * 4, np.uint64), np.full(9, 64 * 4, np.uint64))
    assert batch.starts.tolist() == [0, 6, 7]
