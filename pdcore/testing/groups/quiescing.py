"""Whether bytes may still land: what DONE, revoke and close promise."""

from __future__ import annotations

import numpy as np

from pdcore.model import Deadline
from pdcore.outcome import Quiescence, TransferState
from pdcore.plan.split import split_entries
from pdcore.regions import WriteBatch
from pdcore.testing import commands as c
from pdcore.testing.bounded import bounded
from pdcore.testing.stage import GRACE, MIB, STILL, Link, Stage

SOME = WriteBatch.of(0, 0, [0], [512], [1000])


class Quiescing:
    """The group ``quiescing``."""

    def test_done_means_landed(self, stage: Stage) -> None:
        size = 16 * MIB
        link = stage.link([size], [size])
        limit = link.near.engine.capabilities.max_entry_bytes
        batch = split_entries(WriteBatch.of(0, 0, [0], [0], [size]), limit)
        transfer = link.write(batch)
        assert transfer.poll() is TransferState.DONE, str(transfer.error)
        assert transfer.quiescence is Quiescence.DRAINED
        link.require_arrived(batch)
        link.far.require_still("DONE")

    def test_nothing_lands_after_the_writer_closed(self, stage: Stage) -> None:
        size = 8 * MIB
        link = stage.link([size], [size])
        pump = link.pump()
        link.near.close()
        link.far.require_still("the writer's close()")
        assert pump.wait_failed(stage.deadline()) is not None

    def test_a_revoked_writer_is_silent(self, stage: Stage) -> None:
        size = 8 * MIB
        link = stage.link([size], [size])
        pump = link.pump()
        if not self._revoke(link):
            assert pump.stop(stage.deadline())
            return
        link.far.require_still("revoke() was DRAINED")
        error = pump.wait_failed(stage.deadline())
        assert error is not None, "a revoked writer's writes must fail"
        assert not link.far.process.ask(c.Guards(), dict[int, list[int]])

    def test_a_write_of_a_revoked_writer_fails_and_moves_nothing(self, stage: Stage) -> None:
        link = stage.link()
        if not self._revoke(link):
            return
        transfer = link.write(SOME)
        assert transfer.poll() is TransferState.FAILED
        assert transfer.error is not None
        self._require_honest(link, transfer.quiescence)
        link.require_arrived()
        link.far.require_still("a write that FAILED and was DRAINED")

    def test_a_writer_that_is_admitted_again_can_write(self, stage: Stage) -> None:
        link = stage.link()
        if not self._revoke(link):
            return
        link.far.process.tell(c.Admit(link.near.engine.endpoint()))
        link.peer = link.connect()
        link.deliver(SOME)
        link.require_arrived(SOME)

    def test_a_writer_that_died_counts_as_silent(self, stage: Stage) -> None:
        receiver, writer = stage.near(), stage.far()
        receiver.engine.admit(writer.endpoint)
        writer.process.tell(c.Connect(receiver.engine.endpoint(), receiver.export))
        writer.process.kill()
        drained = receiver.engine.revoke(writer.endpoint, stage.deadline()) is Quiescence.DRAINED
        assert drained == receiver.engine.capabilities.revocable
        if drained:
            self._require_still(stage)

    def test_a_stopped_writer_is_not_called_silent_while_it_may_write(self, stage: Stage) -> None:
        size = 8 * MIB
        receiver, writer = stage.near([size]), stage.far([size])
        receiver.engine.admit(writer.endpoint)
        writer.process.tell(c.Connect(receiver.engine.endpoint(), receiver.export))
        writer.process.stop()
        try:
            soon = Deadline.after(0.2)
            said = bounded(lambda: receiver.engine.revoke(writer.endpoint, soon), GRACE, "revoke")
            receiver.memory[0].fill(0)
        finally:
            writer.process.resume()
        pumped = writer.process.ask(c.StopPump(), c.Pumped)
        if said is Quiescence.DRAINED:
            assert pumped.error, "a writer was called silent and could go on"
            self._require_still(stage)
        elif receiver.engine.capabilities.revocable:
            again = receiver.engine.revoke(writer.endpoint, stage.deadline())
            assert again is Quiescence.DRAINED, "the writer had stopped, and is still not called silent"

    def test_nothing_lands_after_the_receiver_closed(self, stage: Stage) -> None:
        size = 8 * MIB
        link = stage.link([size], [size])
        pump = link.pump()
        if not link.near.engine.capabilities.revocable:
            assert pump.stop(stage.deadline())
            return
        link.far.close()
        link.far.require_still("the receiver's close()")
        assert pump.wait_failed(stage.deadline()) is not None

    def _revoke(self, link: Link) -> bool:
        """Revoke the near engine; return whether it is silent, which only a revocable engine may say."""
        said = link.far.revoke(link.near)
        revocable = link.near.engine.capabilities.revocable
        assert (said is Quiescence.DRAINED) == revocable, f"revocable={revocable}, and revoke says {said}"
        return revocable

    def _require_honest(self, link: Link, said: Quiescence) -> None:
        if link.near.engine.capabilities.drained_on_failure:
            assert said is Quiescence.DRAINED

    def _require_still(self, stage: Stage) -> None:
        receiver = stage.nears[0].memory[0]
        receiver.fill(1)
        before = receiver.bytes.copy()
        deadline = Deadline.after(STILL)
        while not deadline.expired:
            assert np.array_equal(receiver.bytes, before), "bytes landed after revoke() was DRAINED"
