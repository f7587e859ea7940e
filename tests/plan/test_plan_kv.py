"""KV pages between groups of any sizes: single cases with every number written down."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from oracle import Copy, copies, i64

from pdcore.contract.regions import WriteBatch
from pdcore.errors import PlanError
from pdcore.layout.kv import Attention, KVBuffer, KVLayout, PageOrder
from pdcore.pairing.topology import CPSenders, Topology
from pdcore.plan import KVCopier


def layout(heads: int, *, layers: tuple[int, ...] = (0,), page_size: int = 2, num_pages: int = 8) -> KVLayout:
    """A head of one token is 4 bytes; the model has 4 heads."""
    return KVLayout.heads(
        layers=layers, kv_heads=heads, head_dim=2, page_size=page_size, num_pages=num_pages, total_kv_heads=4
    )


def copier(prefill: Topology, decode: Topology, local: KVLayout, remote: KVLayout) -> KVCopier:
    here, there = range(len(local.buffers)), range(100, 100 + len(remote.buffers))
    return KVCopier(prefill, decode, local, remote, here, there)


def keys(batch: WriteBatch) -> list[Copy]:
    return [copy for copy in copies(batch) if copy[0] == 0]


def tp(size: int, rank: int = 0) -> Topology:
    return Topology(tp_size=size, tp_rank=rank)


WHOLE = copier(Topology(), Topology(), layout(4), layout(4))


def test_equal_groups_copy_whole_pages_and_merge_neighbours() -> None:
    batch = WHOLE(i64([1, 2, 5]), 0, i64([4, 5, 0]))
    assert copies(batch) == [
        (0, 100, 32, 128, 64),
        (0, 100, 160, 0, 32),
        (1, 101, 32, 128, 64),
        (1, 101, 160, 0, 32),
    ]


def test_a_rank_of_two_fills_its_half_of_every_token() -> None:
    batch = copier(tp(2, 1), tp(1), layout(2), layout(4))(i64([3]), 0, i64([1]))
    assert keys(batch) == [(0, 100, 48, 32 + 8, 8), (0, 100, 56, 32 + 24, 8)]
    assert batch.starts.tolist() == [0, 2, 4]


def test_a_rank_of_one_gives_each_rank_of_two_its_half_of_every_token() -> None:
    batch = copier(tp(1), tp(2, 1), layout(4), layout(2))(i64([3, 4]), 0, i64([1, 0]))
    assert keys(batch) == [
        (0, 100, 96 + 8, 16, 8),
        (0, 100, 112 + 8, 24, 8),
        (0, 100, 128 + 8, 0, 8),
        (0, 100, 144 + 8, 8, 8),
    ]


def test_ranks_with_the_same_single_head_copy_whole_pages() -> None:
    batch = copier(tp(8, 2), tp(4, 1), layout(1), layout(1))(i64([1, 2]), 0, i64([3, 4]))
    assert keys(batch) == [(0, 100, 8, 24, 16)]


@pytest.mark.parametrize(("rank", "sends"), [(0, True), (1, False), (2, True), (3, False)])
def test_a_replica_of_heads_sends_nothing(rank: int, sends: bool) -> None:
    one = copier(tp(8, rank), tp(2), layout(1), layout(2))
    assert one.sends is sends
    assert (len(one(i64([1]), 0, i64([1]))) > 0) is sends


def test_layers_are_paired_by_their_ids_whatever_their_order() -> None:
    stage = layout(4, layers=(9, 4))
    everything = layout(4, layers=(1, 4, 9, 12))
    batch = copier(Topology(pp_size=2, pp_rank=1), Topology(), stage, everything)(i64([0]), 0, i64([1]))
    # Keys of layers 9 and 4, then their values; the other side's order is k1 k4 k9 k12 v1 v4 v9 v12.
    assert list(zip(batch.local_regions, batch.remote_regions, strict=True)) == [
        (0, 102),
        (1, 101),
        (2, 106),
        (3, 105),
    ]


def test_keys_and_values_may_differ_in_size() -> None:
    local, remote = (
        attrs.evolve(
            one, buffers=(one.buffers[0], attrs.evolve(one.buffers[1], item_len=one.buffers[1].item_len // 2))
        )
        for one in (layout(2), layout(4))
    )
    batch = copier(tp(2, 1), tp(1), local, remote)(i64([0]), 0, i64([0]))
    assert copies(batch) == [(0, 100, 0, 8, 8), (0, 100, 8, 24, 8), (1, 101, 0, 4, 4), (1, 101, 4, 12, 4)]


# Orders


def ordered(heads: int, order: PageOrder) -> KVLayout:
    """A head of one token is 4 bytes, or 8 with K and V fused; a page is 2 tokens; the model has 4 heads."""
    return KVLayout.heads(
        layers=[0], kv_heads=heads, head_dim=2, page_size=2, num_pages=8, total_kv_heads=4, order=order
    )


@pytest.mark.parametrize(
    ("order", "pieces"),
    [
        # Rank 1 of 2 has heads 2 and 3 of 4: offsets within its page and within decode's, and bytes.
        (PageOrder.TOKEN_HEAD, [(0, 8, 8), (8, 24, 8)]),
        (PageOrder.HEAD_TOKEN, [(0, 16, 16)]),
        (PageOrder.KV_TOKEN_HEAD, [(0, 8, 8), (8, 24, 8), (16, 40, 8), (24, 56, 8)]),
        (PageOrder.KV_HEAD_TOKEN, [(0, 16, 16), (16, 48, 16)]),
        (PageOrder.TOKEN_KV_HEAD, [(0, 8, 8), (8, 24, 8), (16, 40, 8), (24, 56, 8)]),
        (PageOrder.TOKEN_HEAD_KV, [(0, 16, 16), (16, 48, 16)]),
        (PageOrder.HEAD_KV_TOKEN, [(0, 32, 32)]),
        (PageOrder.HEAD_TOKEN_KV, [(0, 32, 32)]),
    ],
)
def test_the_order_of_a_page_says_how_it_is_cut(order: PageOrder, pieces: list[tuple[int, int, int]]) -> None:
    batch = copier(tp(2, 1), tp(1), ordered(2, order), ordered(4, order))(i64([3, 1]), 0, i64([1, 5]))
    size = ordered(2, order).buffers[0].item_len
    assert keys(batch) == [
        (0, 100, page * size + here, to * 2 * size + there, length)
        for page, to in ((3, 1), (1, 5))
        for here, there, length in pieces
    ]


@pytest.mark.parametrize("order", PageOrder)
def test_equal_groups_copy_whole_pages_in_any_order(order: PageOrder) -> None:
    one = ordered(2, order)
    batch = copier(tp(2, 1), tp(2, 1), one, one)(i64([1, 2]), 0, i64([4, 5]))
    size = one.buffers[0].item_len
    assert keys(batch) == [(0, 100, size, 4 * size, 2 * size)]


def test_buffers_that_are_cut_otherwise_travel_in_one_batch_and_whole_ones_stay_whole() -> None:
    def mixed(tp_size: int) -> KVLayout:
        wide, narrow = 8 // tp_size, max(1, 4 // tp_size)
        return KVLayout(
            2, 8, "uint8", Attention.HEADS, 8,
            (
                KVBuffer(0, "k", 2 * wide),
                KVBuffer(0, "v", 2 * wide, order=PageOrder.HEAD_TOKEN),
                KVBuffer(1, "kv", 2 * 2 * narrow, order=PageOrder.TOKEN_KV_HEAD, units=4),
                KVBuffer(1, "scale", 6, units=1),
            ),
        )  # fmt: skip

    batch = copier(tp(4, 1), tp(8, 3), mixed(4), mixed(8))(i64([1, 2]), 0, i64([5, 6]))
    assert sorted(copies(batch)) == [
        (0, 100, 4 + 1, 10, 1),
        (0, 100, 6 + 1, 11, 1),
        (0, 100, 8 + 1, 12, 1),
        (0, 100, 10 + 1, 13, 1),
        (1, 101, 4 + 2, 10, 2),
        (1, 101, 8 + 2, 12, 2),
        (2, 102, 4, 20, 8),
        (3, 103, 6, 30, 12),
    ]
    batch.prove_inside(np.full(4, 64, np.uint64), np.full(104, 64, np.uint64))


# Chunks and prefixes


def test_a_chunk_takes_its_own_part_of_the_pages_that_decode_named() -> None:
    assert keys(WHOLE(i64([7]), 2, i64([4, 5, 1]))) == [(0, 100, 224, 32, 32)]
    assert len(WHOLE(i64([]), 2, i64([4, 5, 1]))) == 0


def test_pages_that_decode_holds_are_not_sent() -> None:
    # Decode holds the first two pages (4 tokens), so it named the last two.
    wanted = i64([6, 3])
    assert len(WHOLE(i64([0, 1]), 0, wanted, 4)) == 0
    assert keys(WHOLE(i64([1, 2]), 1, wanted, 4)) == [(0, 100, 64, 192, 32)]
    assert keys(WHOLE(i64([3]), 3, wanted, 4)) == [(0, 100, 96, 96, 32)]


def test_a_page_that_decode_holds_in_part_is_sent_whole() -> None:
    assert keys(WHOLE(i64([0, 1, 2]), 0, i64([6, 3]), 3)) == [(0, 100, 32, 192, 32), (0, 100, 64, 96, 32)]


def test_a_full_hit_sends_no_kv() -> None:
    assert len(WHOLE(i64([0, 1, 2]), 0, i64([]), 6)) == 0


@pytest.mark.parametrize("prefill", [Topology(), Topology(cp_size=2), tp(2)])
def test_fewer_pages_than_the_chunk_needs_are_an_error(prefill: Topology) -> None:
    local = layout(2 if prefill.tp_size == 2 else 4)
    with pytest.raises(PlanError) as caught:
        copier(prefill, Topology(), local, layout(4))(i64([1, 2, 3]), 1, i64([1, 2]))
    assert caught.value.happened == "KV page indices of the two sides differ in number"
    assert caught.value.there_is == "3 local and 1 remote indices"


@pytest.mark.parametrize("bad", [8, -1, 2**60, 2**63 - 1])
@pytest.mark.parametrize("side", ["local", "remote"])
def test_a_page_outside_a_pool_is_named_when_heads_are_cut(bad: int, side: str) -> None:
    cut = copier(tp(2), tp(1), layout(2), layout(4))
    good, wrong = i64([1, 2]), i64([1, bad])
    with pytest.raises(PlanError) as caught:
        cut(*((wrong, 0, good) if side == "local" else (good, 0, wrong)))
    assert caught.value.happened == f"KV page indices leave the {side} pool"
    assert caught.value.there_is == f"1 of 2, the first is {bad}; the pool holds 8"


# Context parallelism


def turns(rank: int, senders: CPSenders, chunks: list[tuple[int, int]]) -> list[int]:
    """Return the positions that a context-parallel rank sends of 6 pages of 128 tokens."""
    big = layout(4, page_size=128)
    one = copier(Topology(cp_size=2, cp_rank=rank, cp_senders=senders), Topology(), big, big)
    pages, item = np.arange(6), big.buffers[0].item_len
    found = [keys(one(pages[first:end], first, pages)) for first, end in chunks]
    return [
        start // item + n for chunk in found for _, _, start, _, size in chunk for n in range(size // item)
    ]


@pytest.mark.parametrize("chunks", [[(0, 6)], [(0, 1), (1, 4), (4, 6)], [(0, 3), (3, 6)]])
def test_context_parallel_ranks_take_turns_at_256_tokens_in_any_chunks(chunks: list[tuple[int, int]]) -> None:
    assert turns(0, CPSenders.ALL_RANKS, chunks) == [0, 1, 4, 5]
    assert turns(1, CPSenders.ALL_RANKS, chunks) == [2, 3]


def test_context_parallel_rank_0_sends_all_if_it_sends_alone() -> None:
    assert turns(0, CPSenders.RANK_0, [(0, 6)]) == [0, 1, 2, 3, 4, 5]
    assert turns(1, CPSenders.RANK_0, [(0, 6)]) == []
