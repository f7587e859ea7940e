from __future__ import annotations

import math

import pytest

from pdcore.model import CPU, Deadline, Device, DeviceKind, KVPoll, new_incarnation


class OwnClock:
    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_deadline_counts_down_to_zero_and_not_below() -> None:
    clock = OwnClock()
    deadline = Deadline.after(5, clock)
    assert (deadline.remaining(), deadline.expired) == (5, False)
    clock.now += 4
    assert (deadline.remaining(), deadline.expired) == (1, False)
    clock.now += 1
    assert (deadline.remaining(), deadline.expired) == (0, True)
    clock.now += 10
    assert (deadline.remaining(), deadline.expired) == (0, True)


def test_a_sub_deadline_never_outlives_the_one_it_is_within() -> None:
    clock = OwnClock()
    outer = Deadline.after(5, clock)
    assert outer.within(2).at == 102
    assert outer.within(50).at == outer.at
    clock.now += 4
    assert outer.within(2).at == outer.at
    assert outer.within(50).within(0.5).at == 104.5


def test_a_sub_deadline_keeps_the_clock() -> None:
    clock = OwnClock()
    inner = Deadline.after(5, clock).within(2)
    clock.now += 2
    assert inner.expired


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_deadline_that_never_or_already_ends_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="positive finite number of seconds"):
        Deadline.after(seconds)


def test_poll_states_have_the_numbers_of_the_field() -> None:
    assert {state.name: state.value for state in KVPoll} == {
        "FAILED": 0,
        "BOOTSTRAPPING": 1,
        "WAITING_FOR_INPUT": 2,
        "TRANSFERRING": 3,
        "SUCCESS": 4,
    }


def test_only_failed_and_success_are_terminal() -> None:
    assert {state for state in KVPoll if state.terminal} == {KVPoll.FAILED, KVPoll.SUCCESS}


def test_devices_are_named_as_torch_names_them() -> None:
    assert str(CPU) == "cpu"
    assert str(Device(DeviceKind.CUDA, 1)) == "cuda:1"
    assert str(Device(DeviceKind.NPU)) == "npu:0"


def test_incarnations_are_32_hex_digits_and_new_every_time() -> None:
    some = [new_incarnation() for _ in range(100)]
    assert len(set(some)) == 100
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in some)
