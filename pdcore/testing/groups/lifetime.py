"""Start, registration, close; and that nothing stays behind."""

from __future__ import annotations

import threading

import pytest

from pdcore.contract.outcome import TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.errors import EngineClosedError, EngineError, RegistrationError
from pdcore.model import Deadline
from pdcore.testing.ends import Link
from pdcore.testing.engines import EnginesUnderTest
from pdcore.testing.far import commands as c
from pdcore.testing.rules import Rule

SHORT = 2.0
"""Seconds given to a connect that cannot succeed."""

SOME = WriteBatch.of(0, 0, [0], [512], [1000])


class Lifetime:
    """The group ``lifetime``."""

    @Rule(
        "a closed engine refuses every call with EngineClosedError",
        "a public method is overridden without asking whether the engine is closed",
    )
    def test_a_closed_engine_refuses_everything(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        link.near.close()
        for call in (
            lambda: link.near.engine.write(link.peer, SOME),
            lambda: link.near.engine.connect(link.far.endpoint, link.far.export, engines.deadline()),
            lambda: link.near.engine.register([m.region for m in link.near.memory]),
        ):
            with pytest.raises(EngineClosedError):
                call()
        link.require_arrived()

    @Rule(
        "close() may be called again",
        "close() is overridden and frees the library's handle twice",
    )
    def test_close_may_be_called_again(self, engines: EnginesUnderTest) -> None:
        near = engines.near()
        near.close()
        near.close()

    @Rule(
        "close() ends every thread that the engine started, also for peers that died or never answered",
        "a thread per peer or transfer that nobody joins",
    )
    def test_close_leaves_no_thread(self, engines: EnginesUnderTest) -> None:
        fars = [engines.far() for _ in range(3)]
        before = set(threading.enumerate())
        link, dying, dead = Link(engines.near(), fars[0]), *fars[1:]
        link.deliver(SOME)
        other = Link(link.near, dying)
        dying.process.kill()
        dead.process.kill()
        other.write(SOME)
        with pytest.raises(EngineError):
            link.bounded(
                lambda: link.near.engine.connect(dead.endpoint, dead.export, Deadline.after(SHORT)), "connect"
            )
        link.near.close()
        left = [t.name for t in set(threading.enumerate()) - before if t.is_alive()]
        assert not left, f"threads are left: {left}"

    @Rule(
        "memory is registered once",
        "register() is overridden",
    )
    def test_memory_is_registered_once(self, engines: EnginesUnderTest) -> None:
        near = engines.near()
        with pytest.raises(RegistrationError):
            near.engine.register([m.region for m in near.memory])

    @Rule(
        "deregister() may be called again",
        "deregister() is overridden and takes a registration back twice",
    )
    def test_deregister_may_be_called_again(self, engines: EnginesUnderTest) -> None:
        near = engines.near()
        near.engine.deregister()
        near.engine.deregister()

    @Rule(
        "memory can be deregistered and registered again, and then be written to by who connects again",
        "handles of the first registration are kept",
    )
    def test_memory_that_is_registered_again_can_be_written_to(self, engines: EnginesUnderTest) -> None:
        link = engines.link()
        link.near.engine.disconnect(link.peer)
        link.far.register_again()
        link.far.process.ask(c.AdmitWriter(link.near.engine.endpoint()))
        link.peer = link.connect()
        link.deliver(SOME)
        link.require_arrived(SOME)

    @Rule(
        "disconnect() may be called again, and the peer be connected to again",
        "a handle that is freed twice, or a peer that is remembered as gone",
    )
    def test_disconnect_may_be_called_again_and_the_peer_connected_again(
        self, engines: EnginesUnderTest
    ) -> None:
        link = engines.link()
        link.near.engine.disconnect(link.peer)
        link.near.engine.disconnect(link.peer)
        link.peer = link.connect()
        link.deliver(SOME)
        link.require_arrived(SOME)

    @Rule(
        "two engines of a process share nothing that either can close",
        "the library's state is global to the process",
    )
    def test_a_second_engine_in_the_same_process_is_its_own(self, engines: EnginesUnderTest) -> None:
        first, second = engines.link(), engines.link()
        first.near.close()
        second.deliver(SOME)
        second.require_arrived(SOME)
        first.require_arrived()

    @Rule(
        "an engine that a forked child inherited refuses with EngineClosedError",
        "a public method is overridden without asking whose process it is",
    )
    def test_an_engine_that_a_fork_inherited_refuses(self, engines: EnginesUnderTest) -> None:
        assert engines.far().process.ask(c.ForkEngine()) == "EngineClosedError"

    @Rule(
        "an engine reaches another of its own process",
        "peers are known by process or by host, not by endpoint",
    )
    def test_an_engine_can_write_to_another_of_its_own_process(self, engines: EnginesUnderTest) -> None:
        writer, reader = engines.near(), engines.near()
        reader.engine.admit(writer.engine.endpoint())
        peer = writer.engine.connect(reader.engine.endpoint(), reader.export, engines.deadline())
        transfer = writer.engine.write(peer, SOME)
        assert transfer.wait(engines.deadline()) is TransferState.DONE, str(transfer.error)
        assert bytes(reader.memory[0].bytes[512:1512]) == bytes(writer.memory[0].bytes[:1000])
