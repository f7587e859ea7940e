"""What an engine holds for a peer ends with the peer."""

from __future__ import annotations

import os
import threading
import time
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
from pair import until

from pdcore.contract.engine import TransferEngine
from pdcore.contract.outcome import TransferState
from pdcore.contract.regions import Region, WriteBatch
from pdcore.model import Deadline, Role
from pdcore.testing.far import commands
from pdcore.testing.far.process import FarProcess
from pdcore.testing.target import Target

Counts: TypeAlias = npt.NDArray[np.int64]
LENGTH = 1 << 20
BATCH = WriteBatch.of(0, 0, np.arange(64) * 4096, np.arange(64) * 8192, np.full(64, 4096))
"""More blocks than there are connections."""


def soon() -> Deadline:
    return Deadline.after(60)


def held() -> Counts:
    """Return how many descriptors and Python threads this process has."""
    return np.array([len(os.listdir("/proc/self/fd")), threading.active_count()])


def least() -> Counts:
    """Return the least of a second: what an engine still dials when its peer dies closes a moment later."""
    seen = [held()]
    deadline = Deadline.after(1)
    while not deadline.expired:
        time.sleep(0.05)
        seen.append(held())
    return np.asarray(np.min(seen, axis=0))


def live_and_end(near: TransferEngine, backend: str) -> None:
    """Write to a peer that ends afterwards."""
    far = FarProcess()
    try:
        there = far.ask(commands.StartEngine(backend, {}, "decode", [LENGTH], 1))
        peer = near.connect(there.endpoint, there.export, soon())
        assert near.write(peer, BATCH).wait(soon()) is TransferState.DONE
    finally:
        far.kill()
    near.disconnect(peer)


@pytest.mark.parametrize("backend", ["mooncake_tcp", "nixl_tcp"])
def test_lives_of_a_peer_leave_no_descriptor_and_no_thread_behind(backend: str) -> None:
    target = Target(backend)
    near = target.start_engine(Role.PREFILL)
    try:
        near.register([Region.of("near", np.ones(LENGTH, np.uint8))])
        live_and_end(near, backend)
        after_one = least()
        for _ in range(2):
            live_and_end(near, backend)
        until(lambda: np.all(held() <= after_one))
    finally:
        near.close()
