"""Every wait ends by its deadline, whatever the peer is or has become."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pdcore.contract.engine import Peer
from pdcore.contract.outcome import TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.errors import EngineError
from pdcore.model import Deadline
from pdcore.plan.batches import split_entries
from pdcore.testing.bounded import bounded
from pdcore.testing.ends import GRACE, MIB, Far, Link, Near
from pdcore.testing.engines import EnginesUnderTest
from pdcore.testing.rules import Rule

SHORT = 2.0
"""Seconds given to a connect that cannot succeed."""


def connect(near: Near, endpoint: bytes, export: bytes) -> Peer:
    """Connect with a short deadline, and fail if the call does not end."""
    return bounded(
        lambda: near.engine.connect(endpoint, export, Deadline.after(SHORT)), SHORT + GRACE, "connect"
    )


class Deadlines:
    """The group ``deadlines``."""

    @Rule(
        "a corrupt export is refused with an EngineError",
        "connect() is overridden, or the library's own error comes through",
    )
    @pytest.mark.parametrize("cut", [0, 3, -1, None], ids=["empty", "stub", "truncated", "flipped"])
    def test_a_corrupt_export_is_refused(self, engines: EnginesUnderTest, cut: int | None) -> None:
        near, far = engines.near(), engines.far()
        flipped = bytes([*far.export[:-1], far.export[-1] ^ 1])
        with pytest.raises(EngineError):
            connect(near, far.endpoint, flipped if cut is None else far.export[:cut])

    @Rule(
        "an endpoint that is noise is refused with an EngineError, in time",
        "the library's or the decoder's own error comes through, or it tries to reach it for ever",
    )
    def test_an_endpoint_that_is_noise_is_refused(self, engines: EnginesUnderTest) -> None:
        near, far = engines.near(), engines.far()
        noise = np.random.default_rng(7).bytes(len(far.endpoint))
        with pytest.raises(EngineError):
            connect(near, noise, far.export)

    @Rule(
        "connecting to a dead process is refused with an EngineError by its deadline",
        "the library's connect has no deadline, or is lazy and hides that nobody is there",
    )
    def test_connecting_to_a_dead_process_ends_in_time(self, engines: EnginesUnderTest) -> None:
        near, far = engines.near(), engines.far()
        far.process.kill()
        with pytest.raises(EngineError):
            connect(near, far.endpoint, far.export)

    @Rule(
        "connecting to a process that does not answer ends by its deadline",
        "the library's connect waits for the peer without a deadline",
    )
    def test_connecting_to_a_stopped_process_ends_in_time(self, engines: EnginesUnderTest) -> None:
        near, far = engines.near(), engines.far()
        far.process.pause()
        try:
            connect(near, far.endpoint, far.export)
        except EngineError:
            pass  # an engine that needs the peer's help says so; a one-sided one connects
        finally:
            far.process.resume()

    @Rule(
        "a peer that cannot be reached holds up no other",
        "connect() holds a lock that write() takes, too",
    )
    def test_a_peer_that_cannot_be_reached_holds_up_no_other(self, engines: EnginesUnderTest) -> None:
        link, dead, stopped = engines.link(), engines.far(), engines.far()
        dead.process.kill()
        with pytest.raises(EngineError):
            connect(link.near, dead.endpoint, dead.export)
        batch = WriteBatch.of(0, 0, [0], [0], [4096])
        begun, moment = threading.Event(), threading.Event()
        with ThreadPoolExecutor(1) as pool:
            stopped.process.pause()
            try:
                trying = pool.submit(self._try, link, stopped, begun)
                begun.wait(link.near.patience)
                for _ in range(3):  # the first may come before the engine is in its connect
                    bounded(lambda: link.deliver(batch), link.near.patience / 2, "a write to another peer")
                    moment.wait(0.05)
            finally:
                stopped.process.resume()
            trying.result()
        link.require_arrived(batch)

    def _try(self, link: Link, far: Far, begun: threading.Event) -> None:
        """Connect to a peer that may not answer before it goes on."""
        begun.set()
        with contextlib.suppress(EngineError):
            link.near.engine.connect(far.endpoint, far.export, link.deadline())

    @Rule(
        "wait() returns at its deadline, PENDING if need be, and never raises",
        "the library's wait has no deadline, or raises at it",
    )
    def test_a_wait_ends_at_its_deadline(self, engines: EnginesUnderTest) -> None:
        size = 16 * MIB
        link = engines.link([size], [size])
        limit = link.near.engine.capabilities.max_entry_bytes
        transfer = link.submit(split_entries(WriteBatch.of(0, 0, [0], [0], [size]), limit))
        bounded(lambda: transfer.wait(Deadline.after(1e-6)), GRACE, "wait")
        assert transfer.wait(engines.deadline()) is TransferState.DONE
