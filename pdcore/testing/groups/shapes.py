"""Batches of all shapes: the right bytes arrive, and nothing else is touched."""

from __future__ import annotations

import numpy as np
import pytest

from pdcore.contract.outcome import TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.errors import PlanError
from pdcore.plan.batches import join
from pdcore.testing.ends import KIB, MIB
from pdcore.testing.engines import EnginesUnderTest
from pdcore.testing.rules import Rule


def scattered(entries: int, size: int, seed: int) -> WriteBatch:
    """Return entries of ``size`` bytes, each somewhere else on either side, without overlap."""
    random = np.random.default_rng(seed)
    here, there = random.permutation(entries), random.permutation(entries)
    return WriteBatch.of(0, 0, size * here, size * there, np.full(entries, size))


class Shapes:
    """The group ``shapes``."""

    @Rule(
        "an empty batch is DONE at once",
        "do_write() is overridden in write(), which sends nothing away for it",
    )
    def test_an_empty_batch_is_done_and_moves_nothing(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        assert link.submit(WriteBatch.empty()).poll() is TransferState.DONE
        link.require_arrived()

    @Rule(
        "any number of bytes arrives",
        "lengths are rounded to the library's blocks",
    )
    def test_one_byte_arrives(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        batch = WriteBatch.of(0, 0, [8 * KIB], [16 * KIB], [1])
        link.deliver(batch)
        link.require_arrived(batch)

    @Rule(
        "any offset and any length is right, aligned or not",
        "offsets or lengths are rounded to the library's items or blocks",
    )
    def test_unaligned_entries_arrive(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        batch = WriteBatch.of(0, 0, [1, 4099, 70_001], [3, 9_001, 65_537], [7, 4_095, 12_347])
        link.deliver(batch)
        link.require_arrived(batch)

    @Rule(
        "a region is written from its first to its last byte, and nothing beyond",
        "bounds that are off by one",
    )
    def test_the_first_and_the_last_byte_of_a_region_arrive(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        batch = WriteBatch.of(0, 0, [0, MIB - 64], [0, MIB - 64], [64, 64])
        link.deliver(batch)
        link.require_arrived(batch)

    @Rule(
        "all entries of a batch arrive, however many: the first, the last and those between",
        "a list is cut at the library's limit, or an entry is lost where pieces meet",
    )
    @pytest.mark.parametrize(("entries", "size"), [(10_000, 192), (100_000, 64)])
    def test_scattered_entries_arrive(self, engines: EnginesUnderTest, entries: int, size: int) -> None:
        link = engines.link([(entries + 1) * size], [(entries + 1) * size])
        batch = scattered(entries, size, seed=entries)
        link.deliver(batch)
        link.require_arrived(batch)

    @Rule(
        "each entry goes from its own local region to its own remote one",
        "the first region's base or handle is used for all",
    )
    def test_many_pairs_of_regions_arrive_in_one_batch(self, engines: EnginesUnderTest) -> None:
        lengths = [64 * KIB + 4096 * i for i in range(24)]
        link = engines.link(lengths, lengths[::-1])
        offsets = np.arange(0, 56 * KIB, 8 * KIB)
        here, sizes = offsets[::-1], np.full(len(offsets), 1021)
        pairs = [WriteBatch.of(i, (5 * i) % 24, here + i, offsets + 3 * i, sizes + 8 * i) for i in range(24)]
        batch = join(pairs)
        link.deliver(batch)
        link.require_arrived(batch)

    @Rule(
        "an entry up to max_entry_bytes arrives whole",
        "DONE is told before the end of a long entry has landed, or its length overflows",
    )
    def test_a_large_contiguous_entry_arrives(self, engines: EnginesUnderTest) -> None:
        size = 64 * MIB
        link = engines.link([size + 4096], [size + 8192])
        limit = link.near.engine.capabilities.max_entry_bytes or size
        offsets = np.arange(0, size, limit)
        batch = WriteBatch.of(0, 0, 4096 + offsets, 2048 + offsets, np.minimum(limit, size - offsets))
        link.deliver(batch)
        link.require_arrived(batch)

    @Rule(
        "a write that begins after another is DONE goes over it",
        "an earlier write is still under way, or is sent again, after it was DONE",
    )
    def test_later_writes_go_over_earlier_ones(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        batches = [WriteBatch.of(0, 0, [4096 * i], [2048 * i], [4096]) for i in range(32)]
        for batch in batches:
            link.deliver(batch)
        link.require_arrived(*batches)

    @Rule(
        "a batch that leaves a region is refused, and none of it moves",
        "write() is overridden, or the peer's regions are not those of its export",
    )
    @pytest.mark.parametrize(
        "batch",
        [
            WriteBatch.of(0, 0, [0, 0], [0, MIB - 10], [100, 11]),
            WriteBatch.of(0, 0, [MIB - 10], [0], [11]),
            WriteBatch.of(0, 0, [0], [2**64 - 8], [16]),
            WriteBatch.of(0, 1, [0], [0], [16]),
            WriteBatch.of(0, 0, [0, 64], [0, 64], [64, 0]),
        ],
        ids=["past remote", "past local", "wrapped", "unknown region", "no bytes"],
    )
    def test_a_batch_that_leaves_its_regions_is_refused_whole(
        self, engines: EnginesUnderTest, batch: WriteBatch
    ) -> None:
        link = engines.link()
        with pytest.raises(PlanError):
            link.submit(batch)
        link.require_arrived()
