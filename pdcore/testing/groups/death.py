"""A peer that dies takes only its own transfers with it, and can come back."""

from __future__ import annotations

from pdcore.contract.outcome import TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.errors import EngineError
from pdcore.testing.ends import MIB, Link, require_honest
from pdcore.testing.engines import EnginesUnderTest
from pdcore.testing.far import commands as c
from pdcore.testing.rules import Rule

SOME = WriteBatch.of(0, 0, [0], [512], [1000])


class PeerDeath:
    """The group ``death``."""

    @Rule(
        "a write to a dead peer FAILS with a KVTransferError, and is DRAINED if the engine declares "
        "drained_on_failure",
        "the library's error comes through as it is, or the write never ends",
    )
    def test_a_write_to_a_dead_peer_fails(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        link.deliver(SOME)
        link.far.process.kill()
        link.fail(SOME)

    @Rule(
        "writes under way FAIL when their peer dies",
        "the library goes on waiting for an acknowledgement",
    )
    def test_writes_under_way_fail_when_the_peer_dies(self, engines: EnginesUnderTest) -> None:
        size = 8 * MIB
        link = engines.link([size], [size])
        pump = link.pump()
        link.far.process.kill()
        error = pump.wait_failed(engines.deadline())
        assert error is not None, "writes to a dead peer go on"
        assert pump.last is not None
        require_honest(link.near.engine, pump.last)

    @Rule(
        "a peer's death takes only its own transfers along",
        "one error state, queue or thread for all peers",
    )
    def test_a_peer_beside_the_dead_one_keeps_working(self, engines: EnginesUnderTest) -> None:
        near = engines.near()
        dying, healthy = Link(near, engines.far()), Link(near, engines.far())
        pump = dying.pump()
        dying.far.process.kill()
        assert pump.wait_failed(engines.deadline()) is not None, "writes to a dead peer go on"
        near.engine.disconnect(dying.peer)
        healthy.deliver(SOME)
        healthy.require_arrived(SOME)

    @Rule(
        "a restarted peer has another endpoint and can be connected to",
        "what was cached of the dead one is found by its address",
    )
    def test_a_restarted_peer_is_a_new_one_and_can_be_paired_with(self, engines: EnginesUnderTest) -> None:
        near = engines.near()
        first = Link(near, engines.far())
        first.deliver(SOME)
        first.far.process.kill()
        near.engine.disconnect(first.peer)
        second = Link(near, engines.far())
        assert second.far.endpoint != first.far.endpoint
        second.deliver(SOME)
        second.require_arrived(SOME)

    @Rule(
        "writes to an engine that was replaced FAIL and do not reach its successor",
        "connections are kept by address and reused for whoever listens there now",
    )
    def test_a_peer_whose_engine_was_restarted_is_not_taken_for_the_old_one(
        self, engines: EnginesUnderTest
    ) -> None:
        link = engines.link()
        link.deliver(SOME)
        link.far.close()
        name, options = engines.target.name, dict(engines.target.options)
        started = link.far.process.ask(c.StartEngine(name, options, "decode", link.far.lengths, 2_000))
        assert started.endpoint != link.far.endpoint
        try:
            state = link.write(SOME).poll()
        except EngineError:
            state = TransferState.FAILED
        assert state is TransferState.FAILED, "a write to an engine that is closed was DONE"
        link.require_arrived()
