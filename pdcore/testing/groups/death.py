"""A peer that dies takes only its own transfers with it, and can come back."""

from __future__ import annotations

from pdcore.errors import EngineError, FailureCode, KVTransferError
from pdcore.outcome import TransferState
from pdcore.regions import WriteBatch
from pdcore.testing import commands as c
from pdcore.testing.stage import MIB, Link, Stage

SOME = WriteBatch.of(0, 0, [0], [512], [1000])


class PeerDeath:
    """The group ``death``."""

    def test_a_write_to_a_dead_peer_fails(self, stage: Stage) -> None:
        link = stage.link()
        link.deliver(SOME)
        link.far.process.kill()
        transfer = link.write(SOME)
        assert transfer.poll() is TransferState.FAILED
        self._require_reason(transfer.error)

    def test_writes_under_way_fail_when_the_peer_dies(self, stage: Stage) -> None:
        size = 8 * MIB
        link = stage.link([size], [size])
        pump = link.pump()
        link.far.process.kill()
        self._require_reason(pump.wait_failed(stage.deadline()))

    def test_a_peer_beside_the_dead_one_keeps_working(self, stage: Stage) -> None:
        near = stage.near()
        dying, healthy = Link(near, stage.far()), Link(near, stage.far())
        pump = dying.pump()
        dying.far.process.kill()
        assert pump.wait_failed(stage.deadline()) is not None
        healthy.deliver(SOME)
        healthy.require_arrived(SOME)

    def test_a_restarted_peer_is_a_new_one_and_can_be_paired_with(self, stage: Stage) -> None:
        near = stage.near()
        first = Link(near, stage.far())
        first.deliver(SOME)
        first.far.process.kill()
        near.engine.disconnect(first.peer)
        second = Link(near, stage.far())
        assert second.far.endpoint != first.far.endpoint
        second.deliver(SOME)
        second.require_arrived(SOME)

    def test_a_peer_whose_engine_was_restarted_is_not_taken_for_the_old_one(self, stage: Stage) -> None:
        link = stage.link()
        link.deliver(SOME)
        link.far.close()
        start = c.Start(stage.target.name, dict(stage.target.options), "decode", link.far.lengths, 2_000)
        started = link.far.process.ask(start, c.Started)
        assert started.endpoint != link.far.endpoint
        try:
            state = link.write(SOME).poll()
        except EngineError:
            state = TransferState.FAILED
        assert state is TransferState.FAILED
        link.require_arrived()

    def _require_reason(self, error: Exception | None) -> None:
        assert isinstance(error, KVTransferError), repr(error)
        assert error.code in (FailureCode.PEER_LOST, FailureCode.ENGINE)
        assert error.happened
        assert error.there_is
        assert error.to_do
