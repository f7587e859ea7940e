from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import copies, i64

from pdcore.contract.regions import WriteBatch
from pdcore.errors import PlanError
from pdcore.layout.kv import KVLayout
from pdcore.plan import (
    IndexArray,
    ItemCopier,
    index_array,
    join,
    merge_runs,
    slices,
    split_entries,
)

ITEMS = 24

untimed = settings(deadline=None)

pairings = st.lists(st.tuples(st.integers(0, ITEMS - 1), st.integers(0, ITEMS - 1)), max_size=40)
"""Pairs of a local and a remote item, in any order, with repetitions."""


@st.composite
def walks(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Pairs with many neighbours, as page allocators make them."""
    out: list[tuple[int, int]] = []
    for _ in range(draw(st.integers(0, 6))):
        length = draw(st.integers(1, 8))
        local, remote = draw(st.integers(0, ITEMS - length)), draw(st.integers(0, ITEMS - length))
        out += [(local + i, remote + i) for i in range(length)]
    return out


layouts = st.one_of(
    st.builds(
        lambda layers, heads, size: KVLayout.heads(
            layers=range(layers), kv_heads=heads, head_dim=2, page_size=size, num_pages=ITEMS
        ),
        st.integers(1, 4),
        st.integers(1, 8),
        st.sampled_from([1, 16, 64]),
    ),
    st.builds(
        lambda layers, size: KVLayout.latent(
            layers=range(layers), latent_dim=9, page_size=size, num_pages=ITEMS
        ),
        st.integers(1, 4),
        st.sampled_from([1, 16, 64]),
    ),
)


def sides(pairs: list[tuple[int, int]]) -> tuple[IndexArray, IndexArray]:
    return i64([p[0] for p in pairs]), i64([p[1] for p in pairs])


def moves(batch: WriteBatch) -> Counter[tuple[int, int, int, int]]:
    """Return how often each single byte is copied: local region and offset, remote region and offset."""
    out: Counter[tuple[int, int, int, int]] = Counter()
    for here, there, source, target, length in copies(batch):
        out.update((here, source + i, there, target + i) for i in range(length))
    return out


def consistent(batch: WriteBatch) -> WriteBatch:
    """Return the batch after the proof that it doesn't contradict itself."""
    huge: npt.NDArray[np.uint64] = np.full(16, 2**62, np.uint64)
    batch.prove_inside(huge, huge)
    return batch


def page_copier(layout: KVLayout, remote_items: int = ITEMS) -> ItemCopier:
    count = len(layout.buffers)
    return ItemCopier(
        "page",
        [b.item_len for b in layout.buffers],
        range(count),
        range(count - 1, -1, -1),
        layout.num_pages,
        remote_items,
    )


@st.composite
def batches(draw: st.DrawFn) -> WriteBatch:
    """Batches of a few region pairs, with entries of very different lengths."""
    lens = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    regions = list(range(len(lens)))
    copier = ItemCopier("item", lens, regions, [r + 5 for r in regions], ITEMS, ITEMS)
    return copier(*sides(draw(walks())))


# Runs


@untimed
@given(pairings | walks())
def test_runs_expand_to_the_same_pairs_in_the_same_order(pairs: list[tuple[int, int]]) -> None:
    runs = merge_runs(*sides(pairs))
    expanded = [
        (local + i, remote + i)
        for local, remote, count in zip(runs.local, runs.remote, runs.counts, strict=True)
        for i in range(count)
    ]
    assert expanded == pairs
    assert {runs.local.dtype, runs.remote.dtype, runs.counts.dtype} == {np.dtype(np.int64)}


@untimed
@given(pairings | walks())
def test_no_two_neighbouring_runs_could_be_one(pairs: list[tuple[int, int]]) -> None:
    expected = sum(
        1
        for i, (local, remote) in enumerate(pairs)
        if i == 0 or (local, remote) != (pairs[i - 1][0] + 1, pairs[i - 1][1] + 1)
    )
    assert len(merge_runs(*sides(pairs)).counts) == expected


# Index arrays


@pytest.mark.parametrize(
    "values",
    [[3, 1, 2], (3, 1, 2), np.array([3, 1, 2], np.uint8), np.array([9, 3, 9, 1, 9, 2])[1::2]],
)
def test_index_lists_of_any_integers_become_int64(values: npt.ArrayLike) -> None:
    array = index_array(values, "pages")
    assert (array.dtype, array.tolist()) == (np.dtype(np.int64), [3, 1, 2])


def test_an_index_array_is_a_private_copy() -> None:
    mine = np.arange(3)
    array = index_array(mine, "pages")
    mine[:] = 9
    assert array.tolist() == [0, 1, 2]


def test_an_empty_list_of_indices_is_fine() -> None:
    assert (index_array([], "pages").dtype, len(index_array([], "pages"))) == (np.dtype(np.int64), 0)


@pytest.mark.parametrize(
    ("values", "there_is"),
    [
        ([1.0, 2.0], "an array of shape (2,) and dtype float64"),
        ([[1, 2]], "an array of shape (1, 2) and dtype int64"),
        (3, "an array of shape () and dtype int64"),
        ([True], "an array of shape (1,) and dtype bool"),
        (["1"], "dtype <U1"),
        ([2**70], "dtype object"),
    ],
)
def test_what_is_not_a_list_of_indices_is_refused(values: Any, there_is: str) -> None:
    with pytest.raises(PlanError) as caught:
        index_array(values, "pages")
    assert caught.value.happened == "pages are not a list of indices"
    assert there_is in caught.value.there_is
    assert caught.value.to_do == "hand in a one-dimensional sequence of integers, in host memory"


# Items


@untimed
@given(layouts, pairings | walks())
def test_every_byte_of_every_item_is_copied_as_often_as_it_was_asked(
    layout: KVLayout, pairs: list[tuple[int, int]]
) -> None:
    batch = consistent(page_copier(layout)(*sides(pairs)))
    last = len(layout.buffers) - 1
    expected: Counter[tuple[int, int, int, int]] = Counter()
    for b, buffer in enumerate(layout.buffers):
        size = buffer.item_len
        # The first and last byte of an item and its length tell an item from any other.
        expected.update((b, local * size, last - b, remote * size) for local, remote in pairs)
    found: Counter[tuple[int, int, int, int]] = Counter()
    for here, there, source, target, length in copies(batch):
        size = layout.buffers[here].item_len
        assert length % size == 0
        found.update((here, source + i, there, target + i) for i in range(0, length, size))
    assert found == expected
    assert batch.nbytes == layout.page_bytes * len(pairs)


@untimed
@given(st.permutations(range(ITEMS)), st.permutations(range(ITEMS)), st.integers(0, ITEMS))
def test_distinct_pages_arrive_as_real_bytes_and_nothing_else_changes(
    here: list[int], there: list[int], count: int
) -> None:
    lens = [3, 8]
    source = [np.random.default_rng(b).integers(1, 256, (ITEMS, n), np.uint8) for b, n in enumerate(lens)]
    target = [np.zeros((ITEMS, n), np.uint8) for n in lens]
    copier = ItemCopier("page", lens, [0, 1], [1, 0], ITEMS, ITEMS)
    for local, remote, start, end, length in copies(copier(i64(here[:count]), i64(there[:count]))):
        pool = target[1 - remote].reshape(-1)
        pool[end : end + length] = source[local].reshape(-1)[start : start + length]
    for b in range(2):
        expected = np.zeros_like(target[b])
        for i in range(count):
            expected[there[i]] = source[b][here[i]]
        assert np.array_equal(target[b], expected)


def test_neighbours_on_both_sides_are_one_entry_per_buffer() -> None:
    layout = KVLayout.latent(layers=range(3), latent_dim=4, page_size=1, num_pages=ITEMS)
    batch = page_copier(layout)(i64([4, 5, 6, 7]), i64([10, 11, 12, 13]))
    assert copies(batch) == [(0, 2, 32, 80, 32), (1, 1, 32, 80, 32), (2, 0, 32, 80, 32)]
    assert batch.starts.tolist() == [0, 1, 2, 3]


def test_no_items_are_an_empty_batch() -> None:
    layout = KVLayout.latent(layers=[0], latent_dim=4, page_size=1, num_pages=ITEMS)
    assert len(page_copier(layout)(i64([]), i64([]))) == 0


@untimed
@given(st.integers(0, 9), st.integers(0, 9))
def test_index_lists_of_different_lengths_are_an_error(here: int, there: int) -> None:
    if here == there:
        there += 1
    layout = KVLayout.latent(layers=[0], latent_dim=4, page_size=1, num_pages=ITEMS)
    with pytest.raises(PlanError) as caught:
        page_copier(layout)(np.arange(here), np.arange(there))
    assert caught.value.happened == "page indices of the two sides differ in number"
    assert caught.value.there_is == f"{here} local and {there} remote indices"
    assert caught.value.to_do == "hand in one remote index for every local one"


BEYOND = [ITEMS, -1, 2**52, 2**60, 2**63 - 1, -(2**63)]
"""Indices outside; times an item length the big ones wrap around to small offsets."""


@pytest.mark.parametrize("bad", BEYOND)
@pytest.mark.parametrize("side", ["local", "remote"])
@pytest.mark.parametrize("at", [0, 2])
def test_an_index_outside_a_pool_is_named(bad: int, side: str, at: int) -> None:
    layout = KVLayout.latent(layers=[0, 1], latent_dim=2048, page_size=1, num_pages=ITEMS)
    good, wrong = i64([3, 4, 5]), i64([3, 4, 5])
    wrong[at] = bad
    with pytest.raises(PlanError) as caught:
        page_copier(layout)(*((wrong, good) if side == "local" else (good, wrong)))
    assert caught.value.happened == f"page indices leave the {side} pool"
    assert caught.value.there_is == f"1 of 3, the first is {bad}; the pool holds {ITEMS}"
    assert caught.value.to_do == f"use indices from 0 to {ITEMS - 1}"


@pytest.mark.parametrize("bad", BEYOND)
def test_a_single_index_outside_is_refused_too(bad: int) -> None:
    layout = KVLayout.latent(layers=[0], latent_dim=2048, page_size=1, num_pages=ITEMS)
    with pytest.raises(PlanError, match="leave the remote pool"):
        page_copier(layout)(i64([0]), i64([bad]))


def test_neighbours_across_the_wrap_of_int64_are_refused() -> None:
    layout = KVLayout.latent(layers=[0], latent_dim=4, page_size=1, num_pages=ITEMS)
    wrapping = i64([2**63 - 1, -(2**63)])
    with pytest.raises(PlanError) as caught:
        page_copier(layout)(wrapping, i64([0, 1]))
    assert caught.value.there_is.startswith(f"2 of 2, the first is {2**63 - 1}")


def test_the_pools_of_the_two_sides_may_differ_in_size() -> None:
    layout = KVLayout.latent(layers=[0], latent_dim=4, page_size=1, num_pages=ITEMS)
    small = page_copier(layout, remote_items=2)
    assert copies(small(i64([ITEMS - 1]), i64([1]))) == [(0, 0, (ITEMS - 1) * 8, 8, 8)]
    with pytest.raises(PlanError, match="leave the remote pool"):
        small(i64([ITEMS - 1]), i64([2]))


# Splitting and joining


@untimed
@given(batches(), st.integers(1, 50))
def test_split_entries_moves_the_same_bytes_in_pieces_within_the_limit(batch: WriteBatch, limit: int) -> None:
    parts = consistent(split_entries(batch, limit))
    assert moves(parts) == moves(batch)
    assert all(length <= limit for *_, length in copies(parts))
    expected = [
        (here, there, source + at, target + at, min(limit, length - at))
        for here, there, source, target, length in copies(batch)
        for at in range(0, length, limit)
    ]
    assert copies(parts) == expected


@untimed
@given(batches())
def test_a_batch_within_the_limit_is_not_touched(batch: WriteBatch) -> None:
    assert split_entries(batch, None) is batch
    assert split_entries(batch, 40 * ITEMS) is batch


def test_an_entry_near_the_top_of_the_address_space_is_split_without_wrapping() -> None:
    top = 2**64 - 10
    parts = split_entries(WriteBatch.of(0, 0, [top], [0], [9]), 4)
    assert copies(parts) == [(0, 0, top, 0, 4), (0, 0, top + 4, 4, 4), (0, 0, top + 8, 8, 1)]


@untimed
@given(batches(), st.integers(1, 20))
def test_slices_are_the_same_copies_in_order_and_within_the_limit(batch: WriteBatch, limit: int) -> None:
    pieces = [consistent(piece) for piece in slices(batch, limit)]
    assert [copy for piece in pieces for copy in copies(piece)] == copies(batch)
    assert all(len(piece) <= limit for piece in pieces)
    assert len(pieces) == max(1, -(-len(batch) // limit))


@untimed
@given(batches())
def test_without_a_limit_there_is_one_slice(batch: WriteBatch) -> None:
    assert list(slices(batch, None)) == [batch]


@untimed
@given(st.lists(batches(), max_size=4))
def test_join_holds_the_copies_of_all_in_order(some: list[WriteBatch]) -> None:
    joined = consistent(join(some))
    assert copies(joined) == [copy for batch in some for copy in copies(batch)]
    assert joined.nbytes == sum(batch.nbytes for batch in some)


@untimed
@given(st.lists(batches(), max_size=3), st.integers(1, 12), st.integers(1, 6))
def test_joined_then_split_then_sliced_every_byte_moves_once(
    some: list[WriteBatch], max_bytes: int, max_entries: int
) -> None:
    pieces = list(slices(split_entries(join(some), max_bytes), max_entries))
    total: Counter[tuple[int, int, int, int]] = Counter()
    for piece in pieces:
        total += moves(consistent(piece))
    expected: Counter[tuple[int, int, int, int]] = Counter()
    for batch in some:
        expected += moves(batch)
    assert total == expected
