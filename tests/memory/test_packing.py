"""Bytes of many places go into a slot and out of it: the same as one by one, and nothing else is touched."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import attrs
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pdcore.contract.regions import Region
from pdcore.memory.packing import (
    CopyCost,
    DeviceTable,
    Entries,
    HostBytes,
    Packable,
    memory_to_pack,
    pack,
    table_rows,
    unpack,
)
from pdcore.model import CPU

Bytes = npt.NDArray[np.uint8]
Entry = tuple[int, int]
GAP = 7
SIZE = 600
"""Bytes of a region; odd units leave some at its end."""


def _table(array: Bytes) -> Packable:
    return DeviceTable(torch.from_numpy(array))


def _host(array: Bytes) -> Packable:
    return HostBytes(array)


KINDS: dict[str, Callable[[Bytes], Packable]] = {"numpy": _host, "torch": _table}


@attrs.frozen
class Copies:
    """Entries of some regions, an offset and a length each; none of them overlap."""

    regions: tuple[int, ...]
    entries: tuple[tuple[Entry, ...], ...]

    @property
    def nbytes(self) -> int:
        return sum(length for some in self.entries for _, length in some)

    @property
    def in_numpy(self) -> Entries:
        """The same in arrays."""
        counts = [len(some) for some in self.entries]
        flat = [entry for some in self.entries for entry in some]
        starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)))
        offsets, lengths = (np.array([entry[n] for entry in flat], np.uint64) for n in (0, 1))
        return Entries(np.array(self.regions, np.int64), starts, offsets, lengths)

    def packed(self, memory: Sequence[Bytes]) -> Bytes:
        """Return the bytes one behind the other, copied one entry at a time."""
        parts = [
            memory[region][offset : offset + length]
            for region, some in zip(self.regions, self.entries, strict=True)
            for offset, length in some
        ]
        return np.concatenate(parts)

    def unpacked(self, memory: Sequence[Bytes], slot: Bytes) -> list[Bytes]:
        """Return the memory with the bytes of a slot in it, copied one entry at a time."""
        after, at = [array.copy() for array in memory], 0
        for region, some in zip(self.regions, self.entries, strict=True):
            for offset, length in some:
                after[region][offset : offset + length] = slot[at : at + length]
                at += length
        return after


@st.composite
def equal(draw: st.DrawFn) -> list[Entry]:
    """Pages of one length, at multiples of it."""
    length = draw(st.integers(1, 64))
    pages = draw(st.lists(st.integers(0, SIZE // length - 1), min_size=1, max_size=8, unique=True))
    return [(page * length, length) for page in pages]


@st.composite
def slices(draw: st.DrawFn) -> list[Entry]:
    """Some heads of each page: a part of an item, as far on in each."""
    parts, width = draw(st.integers(2, 4)), draw(st.integers(1, 24))
    item, shift = parts * width, draw(st.integers(0, 5))
    part = draw(st.integers(0, parts - 1)) * width
    most = (SIZE - shift) // item
    pages = draw(st.lists(st.integers(0, most - 1), min_size=1, max_size=8, unique=True))
    return [(shift + page * item + part, width) for page in pages]


@st.composite
def merged(draw: st.DrawFn) -> list[Entry]:
    """Runs of neighbouring pages, as if they were one."""
    length = draw(st.integers(1, 20))
    counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    runs, page = [], draw(st.integers(0, 3))
    for count in counts:
        if (page + count) * length > SIZE:
            break
        runs.append((page * length, count * length))
        page += count + draw(st.integers(0, 2))
    return draw(st.permutations(runs)) if runs else [(0, length)]


@st.composite
def odd(draw: st.DrawFn) -> list[Entry]:
    """Anything: whatever lies between some cuts."""
    cuts = sorted(draw(st.sets(st.integers(0, SIZE), min_size=2, max_size=12)))
    spans = [(a, b - a) for a, b in itertools.pairwise(cuts)]
    return draw(st.lists(st.sampled_from(spans), min_size=1, unique=True))


@st.composite
def single(draw: st.DrawFn) -> list[Entry]:
    """Single bytes, the last one too."""
    places = draw(st.lists(st.integers(SIZE - 40, SIZE - 1), min_size=1, max_size=8, unique=True))
    return [(place, 1) for place in places]


@st.composite
def copies(draw: st.DrawFn) -> tuple[int, Copies]:
    """So many regions, and entries over some of them, in any order."""
    count = draw(st.integers(2, 3))
    regions = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=count, unique=True))
    kinds = st.one_of(equal(), slices(), merged(), odd(), single())
    return count, Copies(tuple(regions), tuple(tuple(draw(kinds)) for _ in regions))


def filled(seed: int, nbytes: int) -> Bytes:
    """Random bytes, none of which is zero."""
    return np.random.default_rng(seed).integers(1, 256, nbytes, np.uint8)


@pytest.mark.parametrize("kind", KINDS)
@given(copies(), st.integers(0, 9))
@settings(deadline=None, max_examples=150)
def test_what_is_packed_is_what_a_loop_copies(kind: str, what: tuple[int, Copies], seed: int) -> None:
    count, chosen = what
    memory = [filled(seed + n, SIZE) for n in range(count)]
    before, ring = [array.copy() for array in memory], filled(99, SIZE * count + 2 * GAP)
    expected = ring.copy()
    expected[GAP : GAP + chosen.nbytes] = chosen.packed(memory)
    slot = KINDS[kind](ring).part(GAP, chosen.nbytes)
    pack([KINDS[kind](array) for array in memory], chosen.in_numpy, slot)
    assert np.array_equal(ring, expected)  # what lies around the slot is as it was
    assert all(np.array_equal(a, b) for a, b in zip(memory, before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@given(copies(), st.integers(0, 9))
@settings(deadline=None, max_examples=150)
def test_what_is_unpacked_is_where_a_loop_puts_it_and_nothing_else_is_touched(
    kind: str, what: tuple[int, Copies], seed: int
) -> None:
    count, chosen = what
    ring = filled(seed, SIZE * count + 2 * GAP)
    memory = [filled(n, SIZE) * np.uint8(seed % 2) for n in range(count)]  # of zeros, or of other bytes
    slot, before = ring[GAP : GAP + chosen.nbytes], ring.copy()
    expected = chosen.unpacked(memory, slot)
    unpack(
        [KINDS[kind](array) for array in memory], chosen.in_numpy, KINDS[kind](ring).part(GAP, chosen.nbytes)
    )
    assert all(np.array_equal(a, b) for a, b in zip(memory, expected, strict=True))
    assert np.array_equal(ring, before)


@pytest.mark.parametrize("kind", KINDS)
@given(copies(), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_bytes_come_out_of_a_slot_as_they_went_in(kind: str, what: tuple[int, Copies], seed: int) -> None:
    count, chosen = what
    source, ring = [filled(seed + n, SIZE) for n in range(count)], np.zeros(SIZE * count, np.uint8)
    target = [np.zeros(SIZE, np.uint8) for _ in range(count)]
    slot = KINDS[kind](ring).part(0, chosen.nbytes)
    pack([KINDS[kind](array) for array in source], chosen.in_numpy, slot)
    unpack([KINDS[kind](array) for array in target], chosen.in_numpy, slot)
    assert np.array_equal(chosen.packed(target), chosen.packed(source))
    assert sum(np.count_nonzero(array) for array in target) == chosen.nbytes


@pytest.mark.parametrize(
    ("entries", "base", "unit", "numbers"),
    [
        ([(64, 32), (0, 32), (160, 32)], 0, 32, [2, 0, 5]),
        ([(8, 16), (40, 16), (24, 16)], 8, 16, [0, 2, 1]),
        ([(10, 4), (2, 4)], 2, 4, [2, 0]),
        ([(0, 64), (96, 32), (160, 96)], 0, 32, [0, 1, 3, 5, 6, 7]),
        ([(7, 3)], 1, 3, [2]),
        ([(0, 8), (12, 8)], 0, 4, [0, 1, 3, 4]),
        ([(3, 2), (8, 4)], 0, 1, [3, 4, 8, 9, 10, 11]),
        ([(5, 1)], 0, 1, [5]),
    ],
)
def test_entries_are_rows_of_the_longest_unit(
    entries: list[Entry], base: int, unit: int, numbers: list[int]
) -> None:
    offsets, lengths = (np.array([entry[n] for entry in entries], np.uint64) for n in (0, 1))
    rows = table_rows(offsets, lengths)
    assert (rows.base, rows.unit, rows.numbers.tolist()) == (base, unit, numbers)
    assert rows.numbers.dtype == np.int64


@given(copies())
@settings(deadline=None, max_examples=100)
def test_rows_are_the_bytes_of_their_entries_in_order(what: tuple[int, Copies]) -> None:
    for some in what[1].entries:
        offsets, lengths = (np.array([entry[n] for entry in some], np.uint64) for n in (0, 1))
        rows = table_rows(offsets, lengths)
        places = [rows.base + n * rows.unit + k for n in rows.numbers.tolist() for k in range(rows.unit)]
        assert places == [offset + k for offset, length in some for k in range(length)]
        unit = math.gcd(*lengths.tolist())
        aligned = len({offset % unit for offset, _ in some}) == 1
        assert rows.unit == (unit if aligned else math.gcd(unit, *offsets.tolist()))


def test_the_memory_of_a_region_is_packed_where_it_lies() -> None:
    array, slot = filled(5, 64), np.zeros(16, np.uint8)
    (memory,) = memory_to_pack([Region.of("region", array)])
    once = Copies((0,), (((8, 8), (32, 8)),))
    pack([memory], once.in_numpy, HostBytes(slot))
    assert slot.tobytes() == array[8:16].tobytes() + array[32:40].tobytes()
    array[:] = 0
    unpack([memory], once.in_numpy, HostBytes(slot))
    assert array[8:16].tobytes() + array[32:40].tobytes() == slot.tobytes()
    assert not array[:8].any()
    assert not array[40:].any()


def test_what_copying_costs_is_measured() -> None:
    cost = CopyCost.measured(CPU)
    assert cost.per_byte > 0
    assert cost.per_entry >= 0
    assert math.isfinite(cost.per_byte + cost.per_entry)
