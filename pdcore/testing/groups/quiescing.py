"""Whether bytes may still land: what DONE, revoke and close promise."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.host.sockets import Unsent
from pdcore.model import Deadline
from pdcore.plan.batches import split_entries
from pdcore.testing.bounded import bounded
from pdcore.testing.ends import GRACE, KIB, MIB, Link
from pdcore.testing.engines import EnginesUnderTest
from pdcore.testing.far import commands as c
from pdcore.testing.memory import MemoryWatch
from pdcore.testing.rules import Rule

SOME = WriteBatch.of(0, 0, [0], [512], [1000])

ROUNDS = 20

LOOK = 0.02
"""Seconds between two looks at the kernel's queues, which tell nobody when they are empty."""


class Quiescing:
    """The group ``quiescing``. The receiver's memory is watched from here, without its help."""

    @Rule(
        "a transfer that is DONE has landed, all of it, and is DRAINED",
        "the library tells when the source may be reused, not when the target has the bytes",
    )
    @pytest.mark.parametrize("size", [64, 300 * KIB, 16 * MIB])
    def test_done_means_landed(self, engines: EnginesUnderTest, size: int) -> None:
        link = engines.link([size], [size])
        limit = link.near.engine.capabilities.max_entry_bytes
        batch = split_entries(WriteBatch.of(0, 0, [0], [0], [size]), limit)
        there, here = link.far.memory[0], link.near.memory[0].bytes
        for turn in range(ROUNDS if size < MIB else 2):
            here[:] = here[::-1].copy()
            transfer = link.near.engine.write(link.peer, batch)  # from here, to look at once
            look = _polled if turn % 2 else _waited
            look(transfer, link.deadline())
            late = int(np.count_nonzero(there[::-1] != here[::-1]))
            assert transfer.poll() is TransferState.DONE, f"the write failed: {transfer.error}"
            assert transfer.quiescence is Quiescence.DRAINED, f"DONE, and {transfer.quiescence.name}"
            assert not late, f"{late} of {size} bytes had not landed when the transfer was DONE"
        link.far.require_still("DONE")

    @Rule(
        "what has ended stays as it has ended, whoever asks how often",
        "the library's handle is released with the first answer, and asked again",
    )
    def test_an_ended_transfer_goes_on_telling(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        transfers = [link.write(SOME) for _ in range(3)]
        link.near.engine.disconnect(link.peer)
        told = {(t.poll(), t.wait(Deadline.after(0.1)), t.quiescence) for t in transfers for _ in range(2)}
        assert told == {(TransferState.DONE, TransferState.DONE, Quiescence.DRAINED)}

    @Rule(
        "nothing moves any more once close() has returned",
        "close() does not wait for the copies under way, or leaves the thread that makes them",
    )
    def test_nothing_lands_after_the_writer_closed(self, engines: EnginesUnderTest) -> None:
        size = 32 * MIB
        link = engines.link([size], [size])
        memory = link.far.memory
        pump = link.pump()
        link.near.close()
        watch = MemoryWatch(memory)
        link.far.require_still("the writer's close()")
        assert not watch.changed(), "bytes landed after the writer's close()"
        assert pump.wait_failed(engines.deadline()) is not None, "a write succeeded after close()"

    @Rule(
        "once revoke() says DRAINED no byte of that writer lands; only a revocable engine says so",
        "revoke() forgets the writer without stopping it, or does not wait for what it has under way",
    )
    def test_a_revoked_writer_is_silent(self, engines: EnginesUnderTest) -> None:
        size = 8 * MIB
        link = engines.link([size], [size])
        pump = link.pump()
        if not self._revoke(link):
            assert pump.stop(engines.deadline()), "a write had not ended"
            return
        link.far.require_still("revoke() was DRAINED")
        error = pump.wait_failed(engines.deadline())
        assert error is not None, "a revoked writer's writes must fail"
        assert not link.far.guards(), "bytes outside a region were overwritten"

    @Rule(
        "a write of a revoked writer FAILS, and moves nothing, then or later",
        "the writer does not look whether it is still admitted, or what it gave to a thread goes on",
    )
    def test_a_write_of_a_revoked_writer_fails_and_moves_nothing(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        if not self._revoke(link):
            return
        link.fail(SOME)
        link.require_arrived()
        link.far.require_still("a write that FAILED")

    @Rule(
        "a writer that was revoked can be admitted again, and then writes",
        "admit() does not take back what revoke() did",
    )
    def test_a_writer_that_is_admitted_again_can_write(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        if not self._revoke(link):
            return
        link.far.process.ask(c.AdmitWriter(link.near.engine.endpoint()))
        link.peer = link.connect()
        link.deliver(SOME)
        link.require_arrived(SOME)

    @Rule(
        "a writer whose process is dead is silent: revoke() says DRAINED if the engine is revocable",
        "revoke() waits for an answer of the dead process",
    )
    def test_a_writer_that_died_counts_as_silent(self, engines: EnginesUnderTest) -> None:
        receiver, writer = engines.near(), engines.far()
        receiver.engine.admit(writer.endpoint)
        writer.process.ask(c.StartPump(receiver.engine.endpoint(), receiver.export))
        writer.process.kill()
        drained = receiver.engine.revoke(writer.endpoint, engines.deadline()) is Quiescence.DRAINED
        revocable = receiver.engine.capabilities.revocable
        assert drained == revocable, f"revocable={revocable}, and revoke() says drained={drained}"
        if drained:
            receiver.require_still("revoke() of a dead writer was DRAINED")

    @Rule(
        "once a dead writer's kernel has sent all, settle() says DRAINED if the engine declares settles, and "
        "nothing of it lands any more; without it settle() says UNKNOWN",
        "what has arrived and is not taken in is not looked for, in sockets or in the library's buffers",
    )
    def test_what_a_dead_writer_left_settles(self, engines: EnginesUnderTest) -> None:
        size = 8 * MIB
        receiver, writer = engines.near([size]), engines.far([size])
        engine, deadline = receiver.engine, engines.deadline()
        engine.admit(writer.endpoint)
        writer.process.ask(c.StartPump(engine.endpoint(), receiver.export))
        writer.process.kill()
        unsent, again = Unsent(), threading.Event()
        while unsent.left() and not deadline.expired:
            again.wait(LOOK)
        said = Quiescence.IN_FLIGHT
        while said is Quiescence.IN_FLIGHT and not deadline.expired:
            said = bounded(lambda: engine.settle(writer.endpoint, Deadline.after(1)), 1 + GRACE, "settle")
        if engine.capabilities.settles:
            assert said is Quiescence.DRAINED, (
                f"declared settles, and settle() of a dead writer says {said.name}"
            )
            receiver.require_still("settle() was DRAINED")
        else:
            assert said is Quiescence.UNKNOWN, f"settles is not declared, and settle() says {said.name}"

    @Rule(
        "a stopped writer is not silent while it could go on writing; once it cannot, revoke() says so",
        "a writer that does not answer is taken for one that has ended",
    )
    def test_a_stopped_writer_is_not_called_silent_while_it_may_write(
        self, engines: EnginesUnderTest
    ) -> None:
        size = 8 * MIB
        receiver, writer = engines.near([size]), engines.far([size])
        receiver.engine.admit(writer.endpoint)
        writer.process.ask(c.StartPump(receiver.engine.endpoint(), receiver.export))
        writer.process.pause()
        try:
            soon = Deadline.after(0.2)
            said = bounded(lambda: receiver.engine.revoke(writer.endpoint, soon), GRACE, "revoke")
            receiver.memory[0].fill(0)
        finally:
            writer.process.resume()
        pumped = writer.process.ask(c.StopPump())
        if said is Quiescence.DRAINED:
            assert pumped.error, "a writer was called silent and could go on"
            receiver.require_still("revoke() of a stopped writer was DRAINED")
        elif receiver.engine.capabilities.revocable:
            again = receiver.engine.revoke(writer.endpoint, engines.deadline())
            assert again is Quiescence.DRAINED, "the writer had stopped, and is still not called silent"

    @Rule(
        "once a revocable receiver has closed nothing lands in its memory, and its writers' writes fail",
        "close() does not revoke the writers, or does not wait until they are silent",
    )
    def test_nothing_lands_after_the_receiver_closed(self, engines: EnginesUnderTest) -> None:
        size = 8 * MIB
        link = engines.link([size], [size])
        pump = link.pump()
        if not link.near.engine.capabilities.revocable:
            assert pump.stop(engines.deadline()), "a write had not ended"
            return
        link.far.close()
        link.far.require_still("the receiver's close()")
        assert pump.wait_failed(engines.deadline()) is not None, "a write to a closed receiver succeeded"

    def _revoke(self, link: Link) -> bool:
        """Revoke the near engine; return whether it is silent, which only a revocable engine may say."""
        said = link.far.revoke(link.near)
        revocable = link.near.engine.capabilities.revocable
        assert (said is Quiescence.DRAINED) == revocable, f"revocable={revocable}, and revoke says {said}"
        return revocable


def _polled(transfer: Transfer, deadline: Deadline) -> None:
    """Await the end of a transfer as the inline model does."""
    while transfer.poll() is TransferState.PENDING and not deadline.expired:
        pass


def _waited(transfer: Transfer, deadline: Deadline) -> None:
    """Await the end of a transfer as the workers do."""
    transfer.wait(deadline)
