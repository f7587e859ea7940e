"""Fault injection itself: the same seed is the same schedule, and every fault does what it is called."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from pdcore.contract.engine import Peer
from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.contract.regions import Region, WriteBatch
from pdcore.errors import KVTransferError
from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.model import Deadline, Generation, RoomId, new_incarnation
from pdcore.testing.faults import Decision, Fault, FaultyChannel, FaultyEngine, Schedule
from pdcore.wire import Channel, Message, Released, Route

SHORT = 0.05
Bytes = npt.NDArray[np.uint8]


class Always(Schedule):
    """A schedule of one fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(0)
        self.fault = fault

    def message(self, place: str) -> Decision:
        return Decision(Fault.NONE if self.healed else self.fault, SHORT)

    def write(self, place: str) -> Decision:
        return Decision(self.fault, SHORT)


def soon() -> Deadline:
    return Deadline.after(30)


def drained(transfer: Transfer) -> None:
    """Wait until a transfer is drained."""
    deadline = soon()
    while transfer.quiescence is not Quiescence.DRAINED:
        assert not deadline.expired


# The schedule


def test_a_seed_decides_alike_whatever_other_places_do() -> None:
    one, two = Schedule(7, 0.5), Schedule(7, 0.5)
    alone = [one.message("prefill Released") for _ in range(100)]
    mixed = []
    for n in range(100):
        mixed.append(two.message("prefill Released"))
        for _ in range(n % 3):
            two.message("decode Abort")
            two.write("prefill write")
    assert alone == mixed
    assert {d.fault for d in alone} >= {Fault.NONE, Fault.DROP, Fault.DELAY}
    assert alone != [Schedule(8, 0.5).message("prefill Released") for _ in range(100)]


def test_a_rate_is_the_share_that_goes_wrong_and_healing_ends_it() -> None:
    schedule = Schedule(3, 0.25)
    wrong = sum(schedule.write("a").fault is not Fault.NONE for _ in range(4000))
    assert 800 < wrong < 1200
    assert len(schedule.happened) == wrong
    schedule.heal()
    assert all(schedule.write("a").fault is Fault.NONE for _ in range(100))


def test_only_the_faults_that_are_asked_for_come() -> None:
    schedule = Schedule(3, 1.0, [Fault.DROP, Fault.LATE])
    assert {schedule.message("a").fault for _ in range(50)} == {Fault.DROP}
    assert {schedule.write("b").fault for _ in range(50)} == {Fault.LATE}
    assert all(0 < schedule.write("b").seconds <= 0.8 for _ in range(50))


def test_a_command_replays_the_operations_and_faults_of_a_seed() -> None:
    command = [sys.executable, "-m", "pdcore.testing.faults", "--seed", "5", "--steps", "15"]
    outputs = [
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout for _ in "ab"
    ]
    operations = [output.splitlines()[:15] for output in outputs]
    assert operations[0] == operations[1]
    assert "every room ended, every page was released, no wrong byte" in outputs[0]


# Writes


@contextmanager
def written(fault: Fault) -> Iterator[tuple[FaultyEngine, Peer, WriteBatch, Bytes, Bytes]]:
    source, target = np.full((2, 64), 7, np.uint8), np.zeros((2, 64), np.uint8)
    far = LocalEngine(LocalOptions())
    near = FaultyEngine(LocalEngine(LocalOptions()), Always(fault), "near")
    try:
        export = far.register([Region.of("a", target[0]), Region.of("b", target[1])])
        near.register([Region.of("a", source[0]), Region.of("b", source[1])])
        far.admit(near.endpoint())
        peer = near.connect(far.endpoint(), export, soon())
        numbers = np.array([0, 1])
        zeros, lens = np.zeros(2, np.uint64), np.full(2, 64, np.uint64)
        batch = WriteBatch(numbers, numbers, np.array([0, 1, 2]), zeros, zeros, lens)
        yield near, peer, batch, source, target
    finally:
        near.close()
        far.close()


def test_an_error_moves_no_byte_and_is_drained() -> None:
    with written(Fault.ERROR) as (near, peer, batch, _, target):
        transfer = near.write(peer, batch)
        assert transfer.poll() is TransferState.FAILED
        assert transfer.quiescence is Quiescence.DRAINED
        assert isinstance(transfer.error, KVTransferError)
        assert not target.any()


def test_a_partial_write_moves_the_first_half() -> None:
    with written(Fault.PARTIAL) as (near, peer, batch, _, target):
        transfer = near.write(peer, batch)
        assert transfer.poll() is TransferState.FAILED
        assert (target[0] == 7).all()
        assert not target[1].any()


def test_a_late_write_fails_at_once_and_lands_afterwards_with_what_is_there_then() -> None:
    with written(Fault.LATE) as (near, peer, batch, source, target):
        transfer = near.write(peer, batch)
        assert transfer.poll() is TransferState.FAILED
        assert transfer.quiescence is Quiescence.IN_FLIGHT
        assert not target.any()
        source[:] = 9
        drained(transfer)
        assert transfer.poll() is TransferState.FAILED
        assert (target == 9).all()


def test_a_hanging_write_is_pending_and_then_done() -> None:
    with written(Fault.HANG) as (near, peer, batch, _, target):
        transfer = near.write(peer, batch)
        assert transfer.poll() is TransferState.PENDING
        assert transfer.wait(soon()) is TransferState.DONE
        assert transfer.quiescence is Quiescence.DRAINED
        assert (target == 7).all()


def test_a_late_write_to_a_closed_engine_is_drained_without_a_byte() -> None:
    with written(Fault.LATE) as (near, peer, batch, _, target):
        transfer = near.write(peer, batch)
        near.close()
        drained(transfer)
        assert not target.any()


def test_an_engine_can_raise_what_none_should() -> None:
    with written(Fault.RAISE) as (near, peer, batch, _, _), pytest.raises(RuntimeError):
        near.write(peer, batch)


# Messages


class Ends:
    """A prefill channel, and a decode channel whose messages go wrong."""

    def __init__(self, fault: Fault) -> None:
        self.schedule = Always(fault)
        self.heard: queue.Queue[Message] = queue.Queue()
        make = partial(self._channel, Channel)
        self.prefill = make("prefill")
        address = self.prefill.bind("127.0.0.1", 0)
        self.decode = self._channel(partial(FaultyChannel, self.schedule), "decode")
        for channel in (self.prefill, self.decode):
            channel.start()
        self.route = self.decode.dial(address)

    def _channel(self, kind: type[Channel] | partial[FaultyChannel], name: str) -> Channel:
        return kind(
            name,
            new_incarnation(),
            on_message=self._on_message,
            on_tick=lambda: None,
            tick=0.01,
            max_message_bytes=1 << 20,
        )

    def _on_message(self, route: Route, message: Message) -> None:
        self.heard.put(message)

    def say(self, *numbers: int) -> None:
        for number in numbers:
            self.decode.post(self.route, released(number))

    def settle(self) -> None:
        done = threading.Event()
        self.decode.call(done.set)
        assert done.wait(30)

    def close(self) -> None:
        self.decode.close(soon())
        self.prefill.close(soon())


def released(number: int) -> Released:
    return Released(RoomId(number), Generation(1))


def sent(fault: Fault, wrong: list[int], good: list[int], expected: list[int]) -> Ends:
    """Send some messages with a fault and some without; return the ends once those expected came."""
    ends = Ends(fault)
    try:
        ends.say(*wrong)
        ends.settle()
        ends.schedule.fault = Fault.NONE
        ends.say(*good)
        assert [ends.heard.get(timeout=30) for _ in expected] == [released(n) for n in expected]
        ends.say(99)
        assert ends.heard.get(timeout=30) == released(99)
    finally:
        ends.close()
    return ends


def test_a_dropped_message_never_comes() -> None:
    sent(Fault.DROP, [1, 2], [3], [3])


def test_a_delayed_message_holds_up_those_after_it() -> None:
    sent(Fault.DELAY, [1], [2, 3], [1, 2, 3])


def test_a_duplicate_comes_twice_and_is_taken_once() -> None:
    ends = sent(Fault.DUPLICATE, [1], [], [1])
    assert ends.prefill.counts["repeated"] <= 1


def test_an_overtaken_message_comes_late_and_is_not_taken() -> None:
    sent(Fault.REORDER, [1], [2], [2])


def test_a_corrupt_message_is_counted_and_others_are_taken() -> None:
    ends = sent(Fault.CORRUPT, [1, 2], [3], [3])
    assert ends.prefill.counts["malformed"] == 2
