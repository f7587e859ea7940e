"""Every step of the protocol, lost or held up: both sides end by their deadline, and go on after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import attrs
import pytest
from pair import config, fill, pools, same_pages

from pdcore import BootstrapServer, Deadline, KVPoll, KVReceiver, KVSender, RoomId, select
from pdcore.testing.faults import Decision, Fault, Schedule
from pdcore.testing.faults.managers import FaultyDecode, FaultyPrefill

REQUEST = 0.7
"""Seconds that a room and its pairing have."""
STEPS = [
    "decode PairRequest",
    "prefill PairReply",
    "decode RequestMetadata",
    "prefill AuxRow",
    "prefill RoomStatus",
    "decode Abort",
    "prefill Released",
    "decode Heartbeat",
    "prefill Heartbeat",
    "prefill write",
]
MESSAGE_LOSS = [Decision(Fault.DROP), Decision(Fault.DELAY, 4 * REQUEST), Decision(Fault.CORRUPT)]
WRITE_LOSS = [Decision(Fault.ERROR), Decision(Fault.HANG, 2 * REQUEST), Decision(Fault.LATE, 2 * REQUEST)]
CASES = [
    (step, decision)
    for step in STEPS
    for decision in (WRITE_LOSS if step.endswith("write") else MESSAGE_LOSS)
]


class OneStep(Schedule):
    """Whatever happens at one place goes wrong, until it is healed; all else goes well."""

    def __init__(self, place: str, decision: Decision) -> None:
        super().__init__(0)
        self._place, self._decision = place, decision

    def _decide(self, place: str, faults: object) -> Decision:
        return Decision(Fault.NONE) if self.healed or place != self._place else self._decision


@attrs.frozen
class Sides:
    bootstrap: str
    prefill: FaultyPrefill
    decode: FaultyDecode

    def begin(self, room: int) -> tuple[KVSender, KVReceiver]:
        sender = self.prefill.sender(RoomId(room))
        receiver = self.decode.receiver(self.bootstrap, RoomId(room))
        receiver.init()
        assert self.prefill.pools.aux is not None
        self.prefill.pools.aux.set(room % 16, RoomId(room), {"first_token": room})
        sender.init(2, room % 16)
        receiver.send_metadata([2 * room % 60, 2 * room % 60 + 1], room % 16)
        sender.send([5])
        return sender, receiver


@contextmanager
def sides(schedule: Schedule) -> Iterator[Sides]:
    cfg, source = config(aux="tcp", request=REQUEST, interval=0.1, max_failures=8), pools()
    fill(source, 1)
    with ExitStack() as stack:
        bootstrap = stack.enter_context(BootstrapServer()).address
        prefill = FaultyPrefill(schedule, select("local"), source, bootstrap, cfg)
        stack.enter_context(prefill)
        decode = stack.enter_context(FaultyDecode(schedule, select("local"), pools(), cfg))
        yield Sides(bootstrap, prefill, decode)


@pytest.mark.parametrize(("step", "decision"), CASES, ids=[f"{s}: {d.fault.value}" for s, d in CASES])
def test_rooms_end_and_pages_come_back_whatever_step_fails(step: str, decision: Decision) -> None:
    schedule = OneStep(step, decision)
    with sides(schedule) as both:
        rooms = [both.begin(room) for room in (1, 2)]
        rooms[1][1].abort()
        rooms[0][0].send([6])
        for handle in (*rooms[0], *rooms[1]):
            assert handle.wait(Deadline.after(30)).terminal
        schedule.heal()
        deadline = Deadline.after(30)
        while not all(handle.release_safe() for pair in rooms for handle in pair) and not deadline.expired:
            both.decode.finished(Deadline.after(0.02))
        for sender, receiver in rooms:
            assert sender.release_safe()
            assert receiver.release_safe()
            sender.clear()
            receiver.clear()
        assert served_again(both)


def served_again(both: Sides) -> bool:
    """Whether a later request arrives; the first ones may yet pay for what went wrong."""
    deadline = Deadline.after(30)
    for room in range(3, 60):
        sender, receiver = both.begin(room)
        sender.send([6])
        done = receiver.wait(Deadline.after(30)) is KVPoll.SUCCESS
        target = [2 * room % 60, 2 * room % 60 + 1]
        if done:
            assert same_pages(both.prefill.pools, [5, 6], both.decode.pools, target)
        for handle in (sender, receiver):
            handle.clear()
        if done or deadline.expired:
            return done
    return False
