from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import attrs
import numpy as np
import numpy.typing as npt
import pytest

from pdcore.demo.content.expected import AUX_SCHEMA, Content, aux_values, mix
from pdcore.demo.content.models import MODELS, ModelShape, ShapeError, Tensor
from pdcore.demo.content.slabs import Cut, Slab, kv_slabs, state_slabs
from pdcore.demo.memory import PageAllocator
from pdcore.model import Deadline, RoomId
from pdcore.pairing.topology import Topology

ROOM = RoomId(5)
QWEN, JAMBA, NEXT = (MODELS[name] for name in ("qwen2.5-0.5b", "jamba-v0.1", "qwen3-next-80b"))
SLABS = kv_slabs(QWEN, 1, Topology())

Arrays = list[npt.NDArray[np.uint8]]


def pools(slabs: Sequence[Slab], items: int = 40) -> Arrays:
    return [np.zeros((items, 8 * len(slab.cut.words)), np.uint8) for slab in slabs]


def pages(seed: int = 0, count: int = 12) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(40)[:count].astype(np.int64)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_what_one_side_fills_the_other_finds_right_at_other_pages(model: str) -> None:
    slabs = kv_slabs(MODELS[model], 1, Topology())
    source, target = pools(slabs), pools(slabs)
    here, there = pages(0), pages(1)
    Content(9, slabs).fill(source, ROOM, here)
    for a, b in zip(source, target, strict=True):
        b[there] = a[here]
    verdict = Content(9, slabs).verify(target, ROOM, there)
    assert verdict.good
    assert verdict.nbytes == 12 * MODELS[model].layout(1, 1).page_bytes


def test_chunks_fill_the_same_bytes_as_one_call() -> None:
    whole, parts = pools(SLABS), pools(SLABS)
    where = pages()
    Content(1, SLABS).fill(whole, ROOM, where)
    for first in range(0, 12, 5):
        Content(1, SLABS).fill(parts, ROOM, where[first : first + 5], first)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_pages_longer_than_the_scratch_space_are_filled_and_compared() -> None:
    slabs = kv_slabs(MODELS["deepseek-v2-lite"], 512, Topology(pp_size=13))
    arrays, content, where = pools(slabs, 3), Content(1, slabs), np.array([2, 0])
    content.fill(arrays, ROOM, where)
    assert content.verify(arrays, ROOM, where).good


def held(model: ModelShape, rank: Topology, buffer: str) -> npt.NDArray[np.uint8]:
    """One item of a buffer as a rank must hold it."""
    groups = (kv_slabs(model, 4, rank), *state_slabs(model, 4, rank))
    ((index, slabs),) = [(n, g) for g in groups for n, slab in enumerate(g) if slab.name == buffer]
    arrays = pools(slabs, 1)
    Content(1, slabs).fill(arrays, ROOM, np.array([0]))
    item: npt.NDArray[np.uint8] = arrays[index][0]
    return item


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_the_heads_of_all_ranks_are_those_of_one_rank(tp: int) -> None:
    whole = held(JAMBA, Topology(), "layer.12.k").reshape(4, 8, 256)
    parts = [
        held(JAMBA, Topology(tp_size=tp, tp_rank=n, pp_size=2), "layer.12.k").reshape(4, -1, 256)
        for n in range(tp)
    ]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_ranks_beyond_the_heads_hold_replicas() -> None:
    ranks = [Topology(tp_size=4, tp_rank=n) for n in range(4)]
    parts = [held(QWEN, rank, "layer.3.v") for rank in ranks]
    assert np.array_equal(parts[0], parts[1])
    assert np.array_equal(parts[2], parts[3])
    assert not np.array_equal(parts[0], parts[2])


def test_one_thread_may_fill_while_another_compares() -> None:
    arrays, others, content = pools(SLABS), pools(SLABS), Content(1, SLABS)
    content.fill(arrays, ROOM, pages())
    with ThreadPoolExecutor(1) as filling:
        rooms = [filling.submit(content.fill, others, RoomId(room), pages()) for room in range(40)]
        verdicts = [content.verify(arrays, ROOM, pages()) for _ in range(40)]
    assert all(room.exception() is None for room in rooms)
    assert all(verdict.good for verdict in verdicts)


def test_the_blocks_of_a_delta_net_are_cut_one_by_one() -> None:
    name = "state.mamba.layer.0.conv"
    whole = held(NEXT, Topology(), name).reshape(8192, 6)
    parts = [held(NEXT, Topology(tp_size=2, tp_rank=n), name).reshape(4096, 6) for n in range(2)]
    blocks = [np.split(part, [1024, 2048]) for part in parts]
    joined = [part for pair in zip(*blocks, strict=True) for part in pair]
    assert np.array_equal(np.concatenate(joined), whole)


def test_a_stage_without_a_component_has_nothing_to_fill_or_compare() -> None:
    content = Content(1, ())
    content.fill([], ROOM, pages())
    assert content.verify([], ROOM, pages()).good


def test_a_cut_through_a_word_is_refused() -> None:
    with pytest.raises(ShapeError) as caught:
        Cut.of(Tensor("conv", ("channel", "tap"), (8192, 3)), Topology(tp_size=3))
    assert caught.value.there_is == "tp_size 3 gives pieces of 16380 bytes"


def test_a_stage_without_kv_layers_is_refused() -> None:
    with pytest.raises(ShapeError) as caught:
        JAMBA.layout(16, 1, Topology(pp_size=16))
    assert caught.value.happened == "pipeline stage 0 of jamba-v0.1 has no KV cache"
    assert caught.value.there_is == "pp_size 16, 32 layers, of which 4 have one"


@pytest.mark.parametrize(
    ("buffer", "page", "offset", "place"),
    [
        (0, 0, 0, "layer 0 k, token 0, head 0, dimension 0"),
        (17, 3, 100, "layer 17 k, token 3, head 0, dimension 50"),
        (47, 11, 255, "layer 23 v, token 11, head 1, dimension 63"),
    ],
)
def test_one_wrong_byte_is_found_and_named(buffer: int, page: int, offset: int, place: str) -> None:
    arrays, where, content = pools(SLABS), pages(), Content(1, SLABS)
    content.fill(arrays, ROOM, where)
    right = int(arrays[buffer][where[page], offset])
    arrays[buffer][where[page], offset] ^= 0x40
    verdict = content.verify(arrays, ROOM, where)
    assert not verdict.good
    assert verdict.digest != verdict.expected_digest
    assert verdict.wrong == 1
    assert str(verdict.first) == (
        f"{place}: 0x{right ^ 0x40:02x} instead of 0x{right:02x} "
        f"(byte {offset} of item {where[page]} of {SLABS[buffer].name})"
    )


def test_a_wrong_byte_of_a_rank_is_named_as_the_whole_model_counts() -> None:
    slabs = kv_slabs(JAMBA, 16, Topology(tp_size=4, tp_rank=3, pp_size=2, pp_rank=1))
    arrays, content, where = pools(slabs), Content(1, slabs), pages()
    content.fill(arrays, ROOM, where, 2)
    arrays[1][where[4], (5 * 2 + 1) * 256 + 7] ^= 1
    first = content.verify(arrays, ROOM, where, 2).first
    assert first is not None
    assert (first.what, first.place) == ("layer 28 k", f"token {(2 + 4) * 16 + 5}, head 7, dimension 3")


def test_a_wrong_state_element_is_named_as_the_whole_model_counts() -> None:
    ((*_, conv, temporal),) = state_slabs(NEXT, 16, Topology(tp_size=2, tp_rank=1))
    slabs = (conv, temporal)
    arrays, content, slot = pools(slabs, 3), Content(1, slabs), np.array([2])
    content.fill(arrays, ROOM, slot)
    arrays[0][2, (1024 + 10) * 6 + 4] ^= 1
    arrays[1][2, ((3 * 128 + 5) * 128 + 6) * 4] ^= 1
    firsts = [
        Content(1, [slab]).verify([array], ROOM, slot).first
        for slab, array in zip(slabs, arrays, strict=True)
    ]
    assert [(f.what, f.place) for f in firsts if f] == [
        ("layer 46 mamba conv", f"channel {2048 + 1024 + 10}, tap 2"),
        ("layer 46 mamba temporal", "head 19, key 5, value 6"),
    ]


@pytest.mark.parametrize("tp", [2, 4])
def test_the_digests_of_all_ranks_add_up_to_that_of_one(tp: int) -> None:
    def verdict(rank: Topology) -> int:
        slabs = kv_slabs(JAMBA, 1, rank)
        arrays, content = pools(slabs), Content(1, slabs)
        content.fill(arrays, ROOM, pages())
        assert content.verify(arrays, ROOM, pages()).good
        return content.verify(arrays, ROOM, pages()).digest

    whole = Topology(tp_size=tp, pp_size=2)
    assert sum(map(verdict, whole.replica())) % 2**64 == verdict(Topology())


def test_two_exchanged_pages_are_wrong() -> None:
    arrays, where, content = pools(SLABS), pages(), Content(1, SLABS)
    content.fill(arrays, ROOM, where)
    for array in arrays:
        array[where[[2, 9]]] = array[where[[9, 2]]]
    verdict = content.verify(arrays, ROOM, where)
    assert verdict.wrong == 2 * len(SLABS)
    assert verdict.digest != verdict.expected_digest


def test_two_exchanged_words_change_the_digest() -> None:
    arrays, where, content = pools(SLABS), pages(), Content(1, SLABS)
    content.fill(arrays, ROOM, where)
    row = arrays[4].view(np.uint64)[where[3]]
    row[[6, 7]] = row[[7, 6]]
    verdict = content.verify(arrays, ROOM, where)
    assert verdict.digest != verdict.expected_digest


@pytest.mark.parametrize("way", ["tokens", "heads"])
def test_exchanged_tokens_and_heads_are_wrong(way: str) -> None:
    slabs = kv_slabs(QWEN, 4, Topology())
    arrays, content, where = pools(slabs), Content(1, slabs), pages()
    content.fill(arrays, ROOM, where)
    page = arrays[0][where[1]].reshape(4, 2, 128)
    axis = 0 if way == "tokens" else 1
    arrays[0][where[1]] = np.flip(page, axis).ravel()
    verdict = content.verify(arrays, ROOM, where)
    assert verdict.wrong == 1
    assert attrs.asdict(verdict)["first"]["place"] == "token 4, head 0, dimension 0"


def test_exchanged_buffers_are_wrong_everywhere() -> None:
    arrays, where, content = pools(SLABS), pages(), Content(1, SLABS)
    content.fill(arrays, ROOM, where)
    arrays[0], arrays[1] = arrays[1], arrays[0]
    verdict = content.verify(arrays, ROOM, where)
    assert verdict.wrong == 2 * 12
    assert verdict.digest != verdict.expected_digest


@pytest.mark.parametrize(("seed", "room"), [(1, 6), (2, 5)])
def test_every_page_left_by_another_room_or_seed_is_wrong(seed: int, room: int) -> None:
    arrays, where = pools(SLABS), pages()
    Content(seed, SLABS).fill(arrays, RoomId(room), where)
    assert Content(1, SLABS).verify(arrays, ROOM, where).wrong == 12 * len(SLABS)


def test_two_rooms_differ_in_every_word_of_a_page() -> None:
    one, other, where, content = pools(SLABS), pools(SLABS), pages(), Content(1, SLABS)
    content.fill(one, ROOM, where)
    content.fill(other, RoomId(6), where)
    for a, b in zip(one, other, strict=True):
        assert (a[where].view(np.uint64) != b[where].view(np.uint64)).all()


def test_untouched_pages_are_wrong() -> None:
    assert Content(1, SLABS).verify(pools(SLABS), ROOM, pages()).wrong == 12 * len(SLABS)


def test_mix_is_splitmix64() -> None:
    # The first outputs of the reference implementation (Vigna, splitmix64.c) for state 0.
    states = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(v) for v in mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_aux_values_fit_the_schema_and_depend_on_seed_and_room() -> None:
    values = aux_values(3, ROOM, tokens=100)
    assert {n: (str(v.dtype), v.shape) for n, v in values.items()} == {
        f.name: (f.dtype, f.shape) for f in AUX_SCHEMA.fields
    }
    again, elsewhere = aux_values(3, ROOM, tokens=100), aux_values(3, RoomId(6), tokens=100)
    assert all(np.array_equal(values[n], again[n]) for n in values)
    assert not np.array_equal(values["logprobs"], elsewhere["logprobs"])


def test_pages_come_scattered_and_differ_between_seeds() -> None:
    soon = Deadline.after(10)
    one, other = PageAllocator(1000, 0).take(1000, soon), PageAllocator(1000, 1).take(1000, soon)
    assert one is not None
    assert other is not None
    assert sorted(one) == sorted(other) == list(range(1000))
    assert (np.diff(one) == 1).sum() < 10
    assert (one != other).sum() > 900


def test_a_page_is_taken_once_until_it_is_given_back() -> None:
    allocator, soon = PageAllocator(10, 0), Deadline.after(10)
    first, second = allocator.take(6, soon), allocator.take(4, soon)
    assert first is not None
    assert second is not None
    assert not set(first) & set(second)
    assert allocator.take(1, Deadline.after(0.001)) is None
    allocator.give_back(second)
    assert allocator.free == 4
    again = allocator.take(4, soon)
    assert again is not None
    assert set(again) == set(second)
