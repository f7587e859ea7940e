"""What fits through the engine at once, and the cutting of what does not."""

from __future__ import annotations

import numpy as np

from pdcore.outcome import TransferState
from pdcore.plan.split import slices, split_entries
from pdcore.regions import WriteBatch
from pdcore.testing.stage import KIB, MIB, Stage

UNLIMITED = 16 * MIB
"""What is tried where an engine declares no limit on an entry, in bytes."""


class Limits:
    """The group ``limits``."""

    def test_an_entry_as_long_as_the_limit_arrives(self, stage: Stage) -> None:
        probe = stage.near()
        size = min(probe.engine.capabilities.max_entry_bytes or UNLIMITED, UNLIMITED)
        link = stage.link([size + 64], [size + 64])
        batch = WriteBatch.of(0, 0, [64], [32], [size])
        link.deliver(batch)
        link.require_arrived(batch)

    def test_a_longer_entry_arrives_cut(self, stage: Stage) -> None:
        probe = stage.near()
        limit = min(probe.engine.capabilities.max_entry_bytes or 4 * KIB, UNLIMITED)
        size = 2 * limit + 1000
        link = stage.link([size], [size])
        whole = WriteBatch.of(0, 0, [0], [0], [size])
        link.deliver(split_entries(whole, limit))
        link.require_arrived(whole)

    def test_as_many_entries_as_may_be_outstanding_arrive(self, stage: Stage) -> None:
        probe = stage.near()
        count = min(probe.engine.capabilities.max_outstanding_entries or 100_000, 100_000)
        link = stage.link([8 * count], [8 * count])
        offsets = 8 * np.arange(count)
        batch = WriteBatch.of(0, 0, offsets, offsets[::-1], np.full(count, 8))
        link.deliver(batch)
        link.require_arrived(batch)

    def test_more_entries_arrive_in_slices(self, stage: Stage) -> None:
        probe = stage.near()
        limit = min(probe.engine.capabilities.max_outstanding_entries or 1000, 50_000)
        count = 2 * limit + 17
        link = stage.link([8 * count], [8 * count])
        offsets = 8 * np.arange(count)
        whole = WriteBatch.of(0, 0, offsets[::-1], offsets, np.full(count, 8))
        for part in slices(whole, limit):
            link.deliver(part)
        link.require_arrived(whole)

    def test_submission_is_as_asynchronous_as_declared(self, stage: Stage) -> None:
        size = 32 * MIB
        link = stage.link([size], [size])
        limit = link.near.engine.capabilities.max_entry_bytes
        batch = split_entries(WriteBatch.of(0, 0, [0], [0], [size]), limit)
        transfers = [link.submit(batch) for _ in range(8)]
        at_once = transfers[-1].poll()
        assert [t.wait(stage.deadline()) for t in transfers] == 8 * [TransferState.DONE]
        if link.near.engine.capabilities.asynchronous:
            assert at_once is TransferState.PENDING, "write returned only when 256 MiB had been moved"
        else:
            assert at_once is TransferState.DONE, "an engine that returns early must say 'asynchronous'"
