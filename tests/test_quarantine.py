from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Deadline
from pdcore.outcome import Finished, Quiescence, Transfer, TransferState
from pdcore.prefill.watched import Watched
from pdcore.quarantine import Quarantine

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


@pytest.fixture
def quarantine() -> Quarantine:
    return Quarantine()


def test_a_drained_transfer_is_let_go_at_once(quarantine: Quarantine) -> None:
    calls: list[str] = []
    assert quarantine.settle(Finished(FAILURE), lambda: calls.append("drained"))
    assert (calls, len(quarantine)) == (["drained"], 0)


@pytest.mark.parametrize("quiescence", [Quiescence.IN_FLIGHT, Quiescence.UNKNOWN])
def test_what_is_not_proven_drained_is_held_for_as_long_as_it_takes(
    quarantine: Quarantine, quiescence: Quiescence
) -> None:
    calls: list[str] = []
    assert not quarantine.settle(Finished(FAILURE, quiescence), lambda: calls.append("drained"))
    for _ in range(3):
        quarantine.sweep()
    assert (calls, len(quarantine)) == ([], 1)


def test_a_sweep_polls_and_lets_exactly_the_drained_go_once(quarantine: Quarantine) -> None:
    calls: list[int] = []
    some = [Straggler() for _ in range(3)]
    for number, transfer in enumerate(some):
        quarantine.settle(transfer, partial(calls.append, number))
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
        quarantine.settle(Finished(FAILURE, Quiescence.UNKNOWN), partial(calls.append, name))
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
    watched = Watched(broken, partial(calls.append, "raised"))
    quarantine.settle(watched, lambda: calls.append("broken"))
    quarantine.settle(healthy, lambda: calls.append("healthy"))
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
        quarantine.settle(second, lambda: calls.append("second"))
        quarantine.sweep()
        calls.append("first")

    quarantine.settle(first, drained)
    first.silent = True
    quarantine.sweep()
    assert (calls, len(quarantine)) == (["second", "first"], 0)


def test_many_threads_that_sweep_and_release_tell_each_once(quarantine: Quarantine) -> None:
    calls: list[int] = []
    some = [Straggler() for _ in range(200)]
    for number, transfer in enumerate(some):
        quarantine.settle(transfer, partial(calls.append, number))
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
