"""A prefill rank that is lost while the engine admits it: what is proven before that would not hold."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import pytest
from pair import MHA

from pdcore.contract.outcome import Quiescence
from pdcore.decode.admission import WriterAdmission
from pdcore.decode.revocation import LostWriter, Revocations
from pdcore.errors import FailureCode
from pdcore.events import Events, Node
from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.model import Deadline, Generation, PeerIdentity, Role, new_incarnation
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.topology import Topology
from pdcore.protocol.actions import Admit, Revoke
from pdcore.protocol.stimuli import PeerConnected, PeerFailed, Stimulus, WriterSilent
from pdcore.wire import Route

ROUTE = Route(b"127.0.0.1:1")
LONG = 30.0


class Slow(LocalEngine):
    """Admits and revokes as it does, but says so, and admits only when it may."""

    def __init__(self) -> None:
        super().__init__(LocalOptions())
        self.said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.may_admit = threading.Semaphore(0)
        self.refuses = False

    def admit(self, endpoint: bytes) -> None:
        self.said.put("admits")
        assert self.may_admit.acquire(timeout=LONG)
        if self.refuses:
            raise OSError("no route to it")
        super().admit(endpoint)
        self.said.put("admitted")

    def revoke(self, endpoint: bytes, deadline: Deadline) -> Quiescence:
        self.said.put("revokes")
        return super().revoke(endpoint, deadline)

    def says(self) -> str:
        return self.said.get(timeout=LONG)


class Side:
    def __init__(self) -> None:
        self.engine, self.writer = Slow(), LocalEngine(LocalOptions())
        self.revocations = Revocations(self.engine, None, lambda _: False)
        self.fed: queue.SimpleQueue[Stimulus] = queue.SimpleQueue()
        incarnation = new_incarnation()
        self.identity = PeerIdentity(Role.PREFILL, incarnation, "127.0.0.1:1")
        self.description = PeerDescription(
            Role.PREFILL, incarnation, "127.0.0.1:1", "0", "local", "", Topology(), MHA, (), None, 0, (),
            self.writer.endpoint(), b"", max_message_bytes=2**20,
        )  # fmt: skip
        events = Events(Node(Role.DECODE, "local", new_incarnation()), [])
        self.admission = WriterAdmission(
            self.engine, LONG, events, self.revocations, lambda _: True, self.fed.put
        )

    def admit(self) -> None:
        self.admission.admit(Admit(ROUTE, self.identity, self.description))

    def revoke(self, upto: int = 1) -> None:
        self.admission.revoke(Revoke(self.identity, self.description, Generation(upto)))

    def hears(self) -> Stimulus:
        return self.fed.get(timeout=LONG)

    def close(self) -> None:
        self.engine.may_admit.release(8)
        self.admission.close(Deadline.after(LONG))
        self.writer.close()
        self.engine.close()


@pytest.fixture
def side() -> Iterator[Side]:
    one = Side()
    yield one
    one.close()


def test_who_is_lost_while_it_is_admitted_is_revoked_after_that(side: Side) -> None:
    side.admit()
    assert side.engine.says() == "admits"
    side.revoke(4)
    assert not len(side.revocations)
    side.engine.may_admit.release()
    assert [side.engine.says(), side.engine.says()] == ["admitted", "revokes"]
    assert side.hears() == PeerConnected(ROUTE, side.identity)
    assert side.hears() == WriterSilent(side.identity, Generation(4))


def test_also_where_it_could_not_be_admitted(side: Side) -> None:
    side.engine.refuses = True
    side.admit()
    assert side.engine.says() == "admits"
    side.revoke()
    side.engine.may_admit.release()
    failed = side.hears()
    assert isinstance(failed, PeerFailed)
    assert failed.failure.code is FailureCode.ENGINE
    assert side.engine.says() == "revokes"
    assert side.hears() == WriterSilent(side.identity, Generation(1))


def test_who_comes_again_meanwhile_is_admitted_once_that_is_over(side: Side) -> None:
    side.admit()
    assert side.engine.says() == "admits"
    side.revoke()
    side.admit()
    side.engine.may_admit.release(2)
    said: list[str] = []
    while said.count("admitted") < 2:
        said.append(side.engine.says())
    assert [word for word in said if word != "revokes"] == ["admitted", "admits", "admitted"]
    side.revoke(9)
    while side.hears() != WriterSilent(side.identity, Generation(9)):
        pass


def test_one_that_was_paired_is_revoked_at_once(side: Side) -> None:
    side.engine.may_admit.release()
    side.admit()
    assert side.hears() == PeerConnected(ROUTE, side.identity)
    side.revoke()
    assert side.hears() == WriterSilent(side.identity, Generation(1))


def test_a_second_look_at_a_writer_waits_for_the_first_and_both_end(side: Side) -> None:
    engine = LocalEngine(LocalOptions())
    revocations = Revocations(_Undecided(), None, lambda _: False)
    try:
        for _ in range(3):
            revocations.start(LostWriter(side.identity, engine.endpoint(), None, lambda: True, lambda: None))
        assert len(revocations) == 1
    finally:
        revocations.close(Deadline.after(LONG))
        engine.close()
    assert not len(revocations)
    name = f"pdcore-revoke-{side.identity.incarnation[:8]}"
    assert name not in {thread.name for thread in threading.enumerate()}


class _Undecided(LocalEngine):
    """An engine that cannot tell yet."""

    def __init__(self) -> None:
        super().__init__(LocalOptions())
        self.close()

    def revoke(self, endpoint: bytes, deadline: Deadline) -> Quiescence:
        threading.Event().wait(deadline.remaining())
        return Quiescence.IN_FLIGHT
