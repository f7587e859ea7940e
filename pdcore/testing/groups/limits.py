"""What fits through the engine at once, and the cutting of what does not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pdcore.contract.outcome import Quiescence, TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.plan.batches import slices, split_entries
from pdcore.testing.ends import KIB, MIB
from pdcore.testing.engines import EnginesUnderTest
from pdcore.testing.rules import Rule

UNLIMITED = 16 * MIB
"""What is tried where an engine declares no limit on an entry, in bytes."""

WRITES = 4


class EngineLimits:
    """The group ``limits``."""

    @Rule(
        "an entry of max_entry_bytes arrives",
        "the limit is one more than the library takes",
    )
    def test_an_entry_as_long_as_the_limit_arrives(self, engines: EnginesUnderTest) -> None:
        probe = engines.near()
        size = min(probe.engine.capabilities.max_entry_bytes or UNLIMITED, UNLIMITED)
        link = engines.link([size + 64], [size + 64])
        batch = WriteBatch.of(0, 0, [64], [32], [size])
        link.deliver(batch)
        link.require_arrived(batch)

    @Rule(
        "a longer entry arrives in pieces of max_entry_bytes",
        "pieces of one entry overlap or leave a gap in the library's own cutting",
    )
    def test_a_longer_entry_arrives_cut(self, engines: EnginesUnderTest) -> None:
        probe = engines.near()
        limit = min(probe.engine.capabilities.max_entry_bytes or 4 * KIB, UNLIMITED)
        size = 2 * limit + 1000
        link = engines.link([size], [size])
        whole = WriteBatch.of(0, 0, [0], [0], [size])
        link.deliver(split_entries(whole, limit))
        link.require_arrived(whole)

    @Rule(
        "max_outstanding_entries go through in one batch",
        "the library's queue is shorter than declared",
    )
    def test_as_many_entries_as_may_be_outstanding_arrive(self, engines: EnginesUnderTest) -> None:
        probe = engines.near()
        count = min(probe.engine.capabilities.max_outstanding_entries or 100_000, 100_000)
        link = engines.link([8 * count], [8 * count])
        offsets = 8 * np.arange(count)
        batch = WriteBatch.of(0, 0, offsets, offsets[::-1], np.full(count, 8))
        link.deliver(batch)
        link.require_arrived(batch)

    @Rule(
        "more entries go through in slices, one after the other",
        "what a slice took of the library's queue is not given back",
    )
    def test_more_entries_arrive_in_slices(self, engines: EnginesUnderTest) -> None:
        probe = engines.near()
        limit = min(probe.engine.capabilities.max_outstanding_entries or 1000, 50_000)
        count = 2 * limit + 17
        link = engines.link([8 * count], [8 * count])
        offsets = 8 * np.arange(count)
        whole = WriteBatch.of(0, 0, offsets[::-1], offsets, np.full(count, 8))
        for part in slices(whole, limit):
            link.deliver(part)
        link.require_arrived(whole)

    @Rule(
        "write() returns before the bytes moved exactly if the engine declares asynchronous, and PENDING"
        " is not DRAINED",
        "write() waits for the library, or it returns early without having been declared to",
    )
    def test_submission_is_as_asynchronous_as_declared(self, engines: EnginesUnderTest) -> None:
        size = 32 * MIB
        link = engines.link([size], [size])
        limit = link.near.engine.capabilities.max_entry_bytes
        batch = split_entries(WriteBatch.of(0, 0, [0], [0], [size]), limit)
        transfers, early = [], []
        for _ in range(8):
            transfers.append(link.submit(batch))
            said = transfers[-1].quiescence
            early.append(transfers[-1].poll() is TransferState.PENDING)
            assert not (early[-1] and said is Quiescence.DRAINED), "a transfer is PENDING and DRAINED"
        assert [t.wait(engines.deadline()) for t in transfers] == 8 * [TransferState.DONE]
        if link.near.engine.capabilities.asynchronous:
            assert any(early), "declared asynchronous, and write() returned when all had been moved"
        else:
            assert not any(early), "write() returned early, and the engine does not say 'asynchronous'"

    @Rule(
        "max_outstanding_entries may be under way to a peer, over all threads and writes",
        "the limit is the library's for one call or one thread, not for the peer",
    )
    def test_as_many_entries_may_be_outstanding_over_several_writes(self, engines: EnginesUnderTest) -> None:
        probe = engines.near()
        count = min(probe.engine.capabilities.max_outstanding_entries or 100_000, 100_000) // WRITES
        link = engines.link([8 * WRITES * count], [8 * WRITES * count])
        offsets = 8 * np.arange(WRITES * count)
        parts, sizes = offsets.reshape(WRITES, count), np.full(count, 8)
        batches = [WriteBatch.of(0, 0, mine, mine[::-1], sizes) for mine in parts]
        with ThreadPoolExecutor(WRITES) as pool:
            list(pool.map(link.deliver, batches))
        link.require_arrived(*batches)
