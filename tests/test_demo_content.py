from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pdcore.demo.allocator import PageAllocator
from pdcore.demo.content import AUX_SCHEMA, Content, aux_values, mix
from pdcore.demo.models import MODELS
from pdcore.layout import KVLayout
from pdcore.model import Deadline, RoomId

ROOM = RoomId(5)


def layout(model: str = "qwen2.5-0.5b") -> KVLayout:
    return MODELS[model].layout(page_size=1, num_pages=40)


def pools(of: KVLayout) -> list[npt.NDArray[np.uint8]]:
    return [np.zeros((of.num_pages, b.item_len), np.uint8) for b in of.buffers]


def pages(seed: int = 0, count: int = 12) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(40)[:count].astype(np.int64)


@pytest.mark.parametrize("model", sorted(MODELS))
def test_what_one_side_fills_the_other_finds_right_at_other_pages(model: str) -> None:
    shape = layout(model)
    source, target = pools(shape), pools(shape)
    here, there = pages(0), pages(1)
    Content(9, shape).fill(source, ROOM, here)
    for a, b in zip(source, target, strict=True):
        b[there] = a[here]
    verdict = Content(9, shape).verify(target, ROOM, there)
    assert verdict.good
    assert (verdict.pages, verdict.nbytes) == (12, 12 * shape.page_bytes)


def test_chunks_fill_the_same_bytes_as_one_call() -> None:
    shape = layout()
    whole, parts = pools(shape), pools(shape)
    where = pages()
    Content(1, shape).fill(whole, ROOM, where)
    for first in range(0, 12, 5):
        Content(1, shape).fill(parts, ROOM, where[first : first + 5], first)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_pages_longer_than_the_scratch_space_are_filled_and_compared() -> None:
    shape = KVLayout.latent(layers=range(2), latent_dim=576, page_size=512, num_pages=3)
    arrays, content, where = pools(shape), Content(1, shape), np.array([2, 0])
    content.fill(arrays, ROOM, where)
    assert content.verify(arrays, ROOM, where).good


@pytest.mark.parametrize(("buffer", "page", "offset"), [(0, 0, 0), (17, 3, 100), (47, 11, 255)])
def test_one_wrong_byte_is_found_and_named(buffer: int, page: int, offset: int) -> None:
    shape = layout()
    arrays, where, content = pools(shape), pages(), Content(1, shape)
    content.fill(arrays, ROOM, where)
    right = int(arrays[buffer][where[page], offset])
    arrays[buffer][where[page], offset] ^= 0x40
    verdict = content.verify(arrays, ROOM, where)
    assert not verdict.good
    assert verdict.digest != verdict.expected_digest
    assert verdict.wrong_pages == 1
    name = shape.buffers[buffer].name
    assert str(verdict.first) == (
        f"buffer {name} (layer {shape.buffers[buffer].layer}), page {page} (pool page {where[page]}), "
        f"byte {offset}: 0x{right ^ 0x40:02x} instead of 0x{right:02x}"
    )


def test_two_exchanged_pages_are_wrong() -> None:
    shape = layout()
    arrays, where, content = pools(shape), pages(), Content(1, shape)
    content.fill(arrays, ROOM, where)
    for array in arrays:
        array[where[[2, 9]]] = array[where[[9, 2]]]
    verdict = content.verify(arrays, ROOM, where)
    assert verdict.wrong_pages == 2 * len(shape.buffers)
    assert verdict.digest != verdict.expected_digest


def test_two_exchanged_words_change_the_digest() -> None:
    shape = layout()
    arrays, where, content = pools(shape), pages(), Content(1, shape)
    content.fill(arrays, ROOM, where)
    row = arrays[4].view(np.uint64)[where[3]]
    row[[6, 7]] = row[[7, 6]]
    verdict = content.verify(arrays, ROOM, where)
    assert verdict.digest != verdict.expected_digest


def test_exchanged_buffers_are_wrong_everywhere() -> None:
    shape = layout()
    arrays, where, content = pools(shape), pages(), Content(1, shape)
    content.fill(arrays, ROOM, where)
    arrays[0], arrays[1] = arrays[1], arrays[0]
    verdict = content.verify(arrays, ROOM, where)
    assert verdict.wrong_pages == 2 * 12
    assert verdict.digest != verdict.expected_digest


@pytest.mark.parametrize(("seed", "room"), [(1, 6), (2, 5)])
def test_every_page_left_by_another_room_or_seed_is_wrong(seed: int, room: int) -> None:
    shape = layout()
    arrays, where = pools(shape), pages()
    Content(seed, shape).fill(arrays, RoomId(room), where)
    assert Content(1, shape).verify(arrays, ROOM, where).wrong_pages == 12 * len(shape.buffers)


def test_two_rooms_differ_in_every_word_of_a_page() -> None:
    shape = layout()
    one, other, where, content = pools(shape), pools(shape), pages(), Content(1, shape)
    content.fill(one, ROOM, where)
    content.fill(other, RoomId(6), where)
    for a, b in zip(one, other, strict=True):
        assert (a[where].view(np.uint64) != b[where].view(np.uint64)).all()


def test_untouched_pages_are_wrong() -> None:
    shape = layout()
    verdict = Content(1, shape).verify(pools(shape), ROOM, pages())
    assert verdict.wrong_pages == 12 * len(shape.buffers)


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
