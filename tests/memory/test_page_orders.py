"""Caches in the shapes that engines hand out: the heads of all ranks together must be the same cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import attrs
import pytest
import torch
from pair import SCHEMA, SLOTS, config, soon

from pdcore import (
    BootstrapServer,
    DecodeManager,
    FailureCode,
    KVLayout,
    KVPoll,
    KVReceiver,
    KVSender,
    MetadataBuffers,
    PageOrder,
    Pools,
    PrefillManager,
    Region,
    RoomId,
    Topology,
    select,
)

BLOCKS, TOKENS, HEADS, DIM, LAYERS = 12, 32, 4, 8, 2
WANTED = 0
"""Stands for the heads of a rank."""
SHAPES = {
    # by order: the shape of a cache, and the dimension of the heads
    PageOrder.TOKEN_HEAD: ((BLOCKS, TOKENS, WANTED, DIM), 2),
    PageOrder.HEAD_TOKEN: ((BLOCKS, WANTED, TOKENS, DIM), 1),
    PageOrder.KV_TOKEN_HEAD: ((BLOCKS, 2, TOKENS, WANTED, DIM), 3),  # FlashInfer, NHD
    PageOrder.KV_HEAD_TOKEN: ((BLOCKS, 2, WANTED, TOKENS, DIM), 2),  # FlashInfer, HND
    PageOrder.TOKEN_KV_HEAD: ((BLOCKS, TOKENS, 2, WANTED, DIM), 3),
    PageOrder.TOKEN_HEAD_KV: ((BLOCKS, TOKENS, WANTED, 2 * DIM), 2),
    PageOrder.HEAD_KV_TOKEN: ((BLOCKS, WANTED, 2, TOKENS, DIM), 1),
    PageOrder.HEAD_TOKEN_KV: ((BLOCKS, WANTED, TOKENS, 2 * DIM), 1),  # vLLM on the CPU
}


def layout(order: PageOrder, heads: int) -> KVLayout:
    return KVLayout.heads(
        layers=range(LAYERS), kv_heads=heads, head_dim=DIM, page_size=TOKENS, num_pages=BLOCKS,
        dtype=torch.float32, total_kv_heads=HEADS, order=order,
    )  # fmt: skip


@attrs.frozen
class Rank:
    """A rank of either side, and its caches: one tensor per buffer."""

    topology: Topology
    pools: Pools
    caches: Sequence[torch.Tensor]


def group(order: PageOrder, tp_size: int, *, seed: int | None) -> list[Rank]:
    """Return the ranks of a group, their caches random or zero."""
    out = []
    held = max(1, HEADS // tp_size)
    shape = [n or held for n in SHAPES[order][0]]
    for rank in range(tp_size):
        described = layout(order, held)
        random = torch.Generator().manual_seed(1000 * (seed or 0) + rank)
        caches = [
            torch.zeros(shape) if seed is None else torch.rand(shape, generator=random)
            for _ in described.buffers
        ]
        regions = [Region.of(b.name, cache) for b, cache in zip(described.buffers, caches, strict=True)]
        pools = Pools(described, regions, aux=MetadataBuffers(SCHEMA, SLOTS))
        out.append(Rank(Topology(tp_size=tp_size, tp_rank=rank), pools, caches))
    return out


def together(ranks: Sequence[Rank], order: PageOrder, blocks: Sequence[int]) -> list[torch.Tensor]:
    """Return the blocks of the whole cache, of all heads, per buffer."""
    every = zip(*(rank.caches for rank in ranks), strict=True)
    return [torch.cat(list(parts), dim=SHAPES[order][1])[list(blocks)] for parts in every]


@contextmanager
def served(
    prefill: Sequence[Rank], decode: Sequence[Rank]
) -> Iterator[tuple[list[KVSender], list[KVReceiver]]]:
    """Start all ranks, and move five blocks."""
    cfg = config()
    with ExitStack() as stack:
        address = stack.enter_context(BootstrapServer()).address
        senders = [
            stack.enter_context(PrefillManager(select("local"), r.pools, r.topology, address, cfg))
            for r in prefill
        ]
        receivers = [
            stack.enter_context(DecodeManager(select("local"), r.pools, r.topology, cfg)) for r in decode
        ]
        sending = [manager.sender(RoomId(1)) for manager in senders]
        for sender in sending:
            sender.init(5)
            sender.send([3, 4, 9, 1, 7])
        receiving = [manager.receiver(address, RoomId(1)) for manager in receivers]
        for receiver in receiving:
            receiver.init()
            receiver.send_metadata([0, 1, 2, 8, 5])
        yield sending, receiving


@pytest.mark.parametrize(
    ("order", "tp_prefill", "tp_decode"),
    [
        *((order, 2, 1) for order in PageOrder),
        *((order, 1, 2) for order in PageOrder),
        (PageOrder.HEAD_TOKEN, 2, 2),
    ],
)
def test_the_cache_of_all_ranks_is_the_same_on_both_sides(
    order: PageOrder, tp_prefill: int, tp_decode: int
) -> None:
    prefill, decode = group(order, tp_prefill, seed=3), group(order, tp_decode, seed=None)
    with served(prefill, decode) as (senders, receivers):
        for handle in (*senders, *receivers):
            assert handle.wait(soon()) is KVPoll.SUCCESS, handle.failure()
    sent, found = together(prefill, order, [3, 4, 9, 1, 7]), together(decode, order, [0, 1, 2, 8, 5])
    assert all(torch.equal(a, b) for a, b in zip(sent, found, strict=True))
    assert all((cache[[3, 4, 6, 7, 9, 10, 11]] == 0).all() for rank in decode for cache in rank.caches)


@pytest.mark.parametrize("tp_decode", [1, 2])
def test_head_major_pages_are_no_token_major_ones_and_both_sides_say_so(tp_decode: int) -> None:
    prefill = group(PageOrder.HEAD_TOKEN, 1, seed=3)
    decode = group(PageOrder.TOKEN_HEAD, tp_decode, seed=None)
    with served(prefill, decode) as (_, receivers):
        for receiver in receivers:
            assert receiver.wait(soon()) is KVPoll.FAILED
            failure = receiver.failure()
            assert failure is not None
            assert failure.code is FailureCode.INCOMPATIBLE
            assert (
                "layout.order (4 buffers, first layer.0.k): prefill (head, token), decode (token, head)"
                in failure.there_is
            )
            assert "converts nothing" in failure.to_do
    assert all((cache == 0).all() for rank in decode for cache in rank.caches)
