from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import attrs
import pytest

from pdcore.contract.outcome import Finished, Quiescence, Transfer, TransferState
from pdcore.errors import FailureCode, KVTransferError
from pdcore.host.process import ProcessIdentity, start_time
from pdcore.model import Deadline, Incarnation, PeerIdentity, Role
from pdcore.prefill.lanes.engine_transfer import GuardedTransfer
from pdcore.rooms.quarantine import Quarantine

FAILURE = KVTransferError(FailureCode.ENGINE, "it broke", "1 of 2", "mend it")


class Straggler(Transfer):
    """A failed transfer whose bytes land until it is told that they don't."""

    error = FAILURE

    def __init__(self) -> None:
        self.silent = False
        self.raises = False
        self._seen = Quiescence.IN_FLIGHT

    def poll(self) -> TransferState:
        if self.raises:
            raise ZeroDivisionError
        if self.silent:
            self._seen = Quiescence.DRAINED
        return TransferState.FAILED

    def wait(self, deadline: Deadline) -> TransferState:
        return self.poll()

    @property
    def quiescence(self) -> Quiescence:
        return self._seen


@attrs.frozen
class Target:
    """A decode rank of this process, or of another one."""

    process: ProcessIdentity | None
    lost: bool = True
    name: str = "a"

    @property
    def identity(self) -> PeerIdentity:
        return PeerIdentity(Role.DECODE, Incarnation(self.name * 32), "10.0.0.1:4711")


PEER = Target(ProcessIdentity.here())


@pytest.fixture
def quarantine() -> Quarantine:
    return Quarantine()


def test_a_drained_transfer_is_let_go_at_once(quarantine: Quarantine) -> None:
    calls: list[str] = []
    assert quarantine.settle(Finished(FAILURE), PEER, lambda: calls.append("drained"))
    assert (calls, len(quarantine)) == (["drained"], 0)


@pytest.mark.parametrize("quiescence", [Quiescence.IN_FLIGHT, Quiescence.UNKNOWN])
def test_what_is_not_proven_drained_is_held_for_as_long_as_it_takes(
    quarantine: Quarantine, quiescence: Quiescence
) -> None:
    calls: list[str] = []
    assert not quarantine.settle(Finished(FAILURE, quiescence), PEER, lambda: calls.append("drained"))
    for _ in range(3):
        quarantine.sweep()
    assert (calls, len(quarantine)) == ([], 1)


def test_a_sweep_polls_and_lets_exactly_the_drained_go_once(quarantine: Quarantine) -> None:
    calls: list[int] = []
    some = [Straggler() for _ in range(3)]
    for number, transfer in enumerate(some):
        quarantine.settle(transfer, PEER, partial(calls.append, number))
    quarantine.sweep()
    assert (calls, len(quarantine)) == ([], 3)
    some[1].silent = True
    quarantine.sweep()
    quarantine.sweep()
    assert (calls, len(quarantine)) == ([1], 2)
    some[0].silent = some[2].silent = True
    quarantine.sweep()
    assert (calls, len(quarantine)) == ([1, 0, 2], 0)


def test_closing_the_engine_lets_all_go(quarantine: Quarantine) -> None:
    calls: list[str] = []
    for name in "ab":
        quarantine.settle(Finished(FAILURE, Quiescence.UNKNOWN), PEER, partial(calls.append, name))
    quarantine.release_all()
    quarantine.release_all()
    quarantine.sweep()
    assert (calls, len(quarantine)) == (["a", "b"], 0)


def test_a_transfer_that_cannot_be_polled_does_not_keep_the_others(
    quarantine: Quarantine, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    broken, healthy = Straggler(), Straggler()
    broken.raises = healthy.silent = True
    watched = GuardedTransfer(broken, partial(calls.append, "raised"))
    quarantine.settle(watched, PEER, lambda: calls.append("broken"))
    quarantine.settle(healthy, PEER, lambda: calls.append("healthy"))
    quarantine.sweep()
    assert (calls, len(quarantine)) == (["raised", "healthy"], 1)
    assert "the engine raised while it was asked about a transfer" in caplog.text
    assert watched.poll() is TransferState.FAILED
    assert watched.quiescence is Quiescence.UNKNOWN
    assert watched.error is not None
    assert watched.error.there_is == "ZeroDivisionError()"
    quarantine.release_all()
    assert calls == ["raised", "healthy", "broken"]


def test_who_is_told_may_settle_and_sweep(quarantine: Quarantine) -> None:
    calls: list[str] = []
    first, second = Straggler(), Straggler()
    second.silent = True

    def drained() -> None:
        quarantine.settle(second, PEER, lambda: calls.append("second"))
        quarantine.sweep()
        calls.append("first")

    quarantine.settle(first, PEER, drained)
    first.silent = True
    quarantine.sweep()
    assert (calls, len(quarantine)) == (["second", "first"], 0)


def test_many_threads_that_sweep_and_release_tell_each_once(quarantine: Quarantine) -> None:
    calls: list[int] = []
    some = [Straggler() for _ in range(200)]
    for number, transfer in enumerate(some):
        quarantine.settle(transfer, PEER, partial(calls.append, number))
    for transfer in some:
        transfer.silent = True
    start = threading.Barrier(4)

    def sweep(nth: int) -> None:
        start.wait(30)
        if nth:
            quarantine.sweep()
        else:
            quarantine.release_all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(sweep, range(4)))
    assert sorted(calls) == list(range(200))
    assert len(quarantine) == 0


UNKNOWN = Finished(FAILURE, Quiescence.UNKNOWN)


def until_empty(quarantine: Quarantine) -> None:
    deadline = Deadline.after(30)
    while len(quarantine):
        assert not deadline.expired
        quarantine.sweep()


def test_what_was_on_its_way_to_a_process_is_let_go_when_that_has_ended_not_when_it_is_stopped(
    quarantine: Quarantine,
) -> None:
    calls: list[str] = []
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = start_time(child.pid)
        assert started is not None
        there = Target(attrs.evolve(ProcessIdentity.here(), pid=child.pid, started=started), name="b")
        quarantine.settle(UNKNOWN, there, lambda: calls.append("theirs"))
        quarantine.settle(UNKNOWN, PEER, lambda: calls.append("ours"))
        child.send_signal(signal.SIGSTOP)
        quarantine.sweep()
        assert (calls, len(quarantine)) == ([], 2)
        assert quarantine.because(there.identity) == (
            f"the engine cannot tell that its writes have ended, and process {child.pid} lives"
        )
        child.kill()
        deadline = Deadline.after(30)
        while len(quarantine) > 1:
            assert not deadline.expired
            quarantine.sweep()
        assert calls == ["theirs"]
        assert quarantine.because(there.identity) is None


def test_a_process_that_cannot_be_seen_is_never_taken_for_dead(quarantine: Quarantine) -> None:
    elsewhere = Target(attrs.evolve(ProcessIdentity.here(), boot="another", pid=2**22 - 1, started=1))
    quarantine.settle(UNKNOWN, elsewhere, lambda: None)
    quarantine.settle(UNKNOWN, Target(None, name="b"), lambda: None)
    quarantine.sweep()
    assert len(quarantine) == 2
    assert "cannot be seen from here" in str(quarantine.because(elsewhere.identity))


def test_after_the_grace_a_lost_peer_counts_as_silent_and_is_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quarantine = Quarantine(grace=0.001)
    quarantine.settle(UNKNOWN, PEER, lambda: None)
    until_empty(quarantine)
    assert quarantine.forsaken == {PEER.identity.incarnation}
    assert "quarantine.grace of 0.001 s is over" in caplog.text


def test_the_grace_is_for_lost_peers_that_are_not_back() -> None:
    back: list[PeerIdentity] = []
    quarantine = Quarantine(grace=0.001, is_back=back.__contains__)
    served, paired_anew = Target(PEER.process, lost=False), Target(PEER.process, name="b")
    back.append(paired_anew.identity)
    for target in (served, paired_anew):
        quarantine.settle(UNKNOWN, target, lambda: None)
    time.sleep(0.01)
    quarantine.sweep()
    assert len(quarantine) == 2
    assert not quarantine.forsaken


def test_one_that_raises_keeps_no_other_from_being_let_go(quarantine: Quarantine) -> None:
    def raises() -> None:
        raise ZeroDivisionError

    calls: list[int] = []
    stragglers = [Straggler() for _ in range(4)]
    for number, straggler in enumerate(stragglers):
        drained = raises if number == 1 else partial(calls.append, number)
        quarantine.settle(straggler, PEER, drained)
    for straggler in stragglers[1:]:
        straggler.silent = True
    stragglers[0].raises = True
    quarantine.sweep()
    assert (calls, len(quarantine)) == ([2, 3], 1)
    quarantine.release_all()
    assert (calls, len(quarantine)) == ([2, 3, 0], 0)
