"""Buffers with a number of pages of their own, such as those of draft layers, over real managers."""

from __future__ import annotations

import numpy as np
import pytest
from pair import finish, paired, pools, same_pages

from pdcore import KVLayout, PlanError
from pdcore.pairing.topology import Topology
from pdcore.plan import KVCopier


def layout(pages: int, draft_pages: int, held: int = 2) -> KVLayout:
    """Two layers of a model, and a draft layer; a rank holds so many of 2 heads."""
    model, draft = (
        KVLayout.heads(
            layers=layers, kv_heads=held, total_kv_heads=2, head_dim=16, page_size=4, num_pages=count
        )
        for layers, count in (([0, 1], pages), ([2], draft_pages))
    )
    return model.beside(draft)


def test_sides_with_other_page_counts_per_buffer_exchange_pages() -> None:
    with paired(source=pools(layout(64, 40)), target=pools(layout(20, 30))) as pair:
        before = [array.copy() for array in pair.decode.pools.arrays]
        pair.move(1, [39, 3, 4], [19, 7, 8])
        untouched = [p for p in range(20) if p not in (19, 7, 8)]
        for old, new in zip(before, pair.decode.pools.arrays, strict=True):
            assert np.array_equal(old[untouched], new[untouched])
            assert np.array_equal(old[20:], new[20:])
        assert same_pages(pair.prefill.pools, [39], pair.decode.pools, [19])


def test_a_page_that_one_buffer_lacks_is_refused_where_it_is_named() -> None:
    with paired(source=pools(layout(64, 40)), target=pools(layout(64, 30))) as pair:
        sender, receiver = pair.open(1)
        sender.init(1)
        with pytest.raises(PlanError) as caught:
            sender.send([40])
        assert caught.value.there_is == "1 of 1, the first is 40; the pool holds 40 pages in layer.2.k"
        with pytest.raises(PlanError) as caught:
            receiver.send_metadata([30])
        assert caught.value.there_is == "1 of 1, the first is 30; the pool holds 30 pages in layer.2.k"
        # Nothing is lost: the same room goes on.
        receiver.send_metadata([29])
        sender.send([39])
        finish(sender, receiver)


def test_between_unequal_groups_each_side_is_bounded_by_its_smallest_buffer() -> None:
    here, there = layout(64, 40, 2), layout(20, 30, 1)
    copier = KVCopier(Topology(tp_size=1), Topology(tp_size=2, tp_rank=1), here, there, range(6), range(6))
    batch = copier(np.array([39]), 0, np.array([19]))
    lengths = (
        np.array([side.pages_of(b) * b.item_len for b in side.buffers], np.uint64) for side in (here, there)
    )
    batch.prove_inside(*lengths)
    for pages, target, side in (([40], [19], "local"), ([39], [20], "remote")):
        with pytest.raises(PlanError, match=f"leave the {side} pool"):
            copier(np.array(pages), 0, np.array(target))
