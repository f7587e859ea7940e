"""Every wait ends by its deadline, whatever the peer is or has become."""

from __future__ import annotations

import numpy as np
import pytest

from pdcore.engine import Peer
from pdcore.errors import EngineError
from pdcore.model import Deadline
from pdcore.outcome import TransferState
from pdcore.plan.split import split_entries
from pdcore.regions import WriteBatch
from pdcore.testing.bounded import bounded
from pdcore.testing.stage import GRACE, MIB, Near, Stage

SHORT = 2.0
"""Seconds given to a connect that cannot succeed."""


def connect(near: Near, endpoint: bytes, export: bytes) -> Peer:
    """Connect with a short deadline, and fail if the call does not end."""
    return bounded(
        lambda: near.engine.connect(endpoint, export, Deadline.after(SHORT)), SHORT + GRACE, "connect"
    )


class Deadlines:
    """The group ``deadlines``."""

    @pytest.mark.parametrize("cut", [0, 3, -1, None], ids=["empty", "stub", "truncated", "flipped"])
    def test_a_corrupt_export_is_refused(self, stage: Stage, cut: int | None) -> None:
        near, far = stage.near(), stage.far()
        flipped = bytes([*far.export[:-1], far.export[-1] ^ 1])
        with pytest.raises(EngineError):
            connect(near, far.endpoint, flipped if cut is None else far.export[:cut])

    def test_an_endpoint_that_is_noise_is_refused(self, stage: Stage) -> None:
        near, far = stage.near(), stage.far()
        noise = np.random.default_rng(7).bytes(len(far.endpoint))
        with pytest.raises(EngineError):
            connect(near, noise, far.export)

    def test_connecting_to_a_dead_process_ends_in_time(self, stage: Stage) -> None:
        near, far = stage.near(), stage.far()
        far.process.kill()
        with pytest.raises(EngineError):
            connect(near, far.endpoint, far.export)

    def test_connecting_to_a_stopped_process_ends_in_time(self, stage: Stage) -> None:
        near, far = stage.near(), stage.far()
        far.process.stop()
        try:
            connect(near, far.endpoint, far.export)
        except EngineError:
            pass  # an engine that needs the peer's help says so; a one-sided one connects
        finally:
            far.process.resume()

    def test_a_peer_that_cannot_be_reached_holds_up_no_other(self, stage: Stage) -> None:
        link, hung = stage.link(), stage.far()
        hung.process.kill()
        with pytest.raises(EngineError):
            connect(link.near, hung.endpoint, hung.export)
        batch = WriteBatch.of(0, 0, [0], [0], [4096])
        link.deliver(batch)
        link.require_arrived(batch)

    def test_a_wait_ends_at_its_deadline(self, stage: Stage) -> None:
        size = 16 * MIB
        link = stage.link([size], [size])
        limit = link.near.engine.capabilities.max_entry_bytes
        transfer = link.submit(split_entries(WriteBatch.of(0, 0, [0], [0], [size]), limit))
        bounded(lambda: transfer.wait(Deadline.after(1e-6)), GRACE, "wait")
        assert transfer.wait(stage.deadline()) is TransferState.DONE
