"""A pause is not a death: peers that stand still, are stopped, are dead, or were never there."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import attrs
import pytest
from pair import config, fill, pools, soon
from recorder import Recorder

from pdcore import (
    BootstrapServer,
    Config,
    Deadline,
    FailureCode,
    KVPoll,
    LivenessConfig,
    PrefillManager,
    Role,
    RoomId,
    Timeouts,
    Topology,
    select,
)
from pdcore.bootstrap import BootstrapClient, RankRecord
from pdcore.decode import DecodeManager
from pdcore.events import HeartbeatMissed, PeerLost, PeerPaired, RoomEnded, Subscriber
from pdcore.model import new_incarnation

LIMIT = 1.0
QUICK = attrs.evolve(config(interval=LIMIT / 5, max_failures=5), timeouts=Timeouts(request=120.0))
PATIENT = attrs.evolve(QUICK, liveness=LivenessConfig(interval=60.0, max_failures=10))
CONFIGS = {"QUICK": QUICK, "PATIENT": PATIENT}

DECODE = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
from pair import pools
from test_pauses import CONFIGS
from pdcore import DecodeManager, Deadline, RoomId, Topology, select

with DecodeManager(select("local"), pools(), Topology(), CONFIGS[sys.argv[3]]) as decode:
    rooms = {}
    for line in sys.stdin:
        word, number = line.split()
        if word == "hold":  # PyDLL keeps the interpreter's lock
            ctypes.PyDLL(None).usleep(int(number))
        elif word == "ask":
            rooms[number] = decode.receiver(sys.argv[2], RoomId(int(number)))
            rooms[number].init()
            rooms[number].send_metadata([int(number)])
        elif word == "end":
            print(rooms[number].wait(Deadline.after(60)).name, flush=True)
            rooms[number].clear()
"""


@attrs.define
class FarDecode:
    """A decode manager in a process of its own."""

    process: subprocess.Popen[str]

    def tell(self, word: str, number: int) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{word} {number}\n")
        self.process.stdin.flush()

    def end(self, room: int) -> str:
        """Wait for the end of a room."""
        self.tell("end", room)
        assert self.process.stdout
        return self.process.stdout.readline().strip()


@contextmanager
def sides(
    cfg: str = "QUICK", subscribers: Sequence[Subscriber] = ()
) -> Iterator[tuple[PrefillManager, FarDecode]]:
    memory = pools()
    fill(memory, 1)
    with (
        BootstrapServer() as bootstrap,
        PrefillManager(
            select("local"), memory, Topology(), bootstrap.address, CONFIGS[cfg], subscribers
        ) as prefill,
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                DECODE,
                os.path.dirname(__file__),
                bootstrap.address,
                cfg,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            yield prefill, FarDecode(process)
        finally:
            process.kill()


def serve(prefill: PrefillManager, decode: FarDecode, room: int) -> None:
    decode.tell("ask", room)
    sender = prefill.sender(RoomId(room))
    sender.init(1)
    sender.send([room])
    assert sender.wait(soon()) is KVPoll.SUCCESS, sender.failure()
    assert decode.end(room) == "SUCCESS"
    sender.clear()


@pytest.mark.parametrize("who", ["prefill", "decode", "both"])
def test_a_process_that_holds_its_interpreter_for_long_is_not_lost(who: str) -> None:
    held = int(2 * LIMIT * 1e6)
    with sides() as (prefill, decode):
        serve(prefill, decode, 1)
        decode.tell("ask", 7)
        sender = prefill.sender(RoomId(7))
        sender.init(1)
        while sender.poll() is KVPoll.BOOTSTRAPPING:
            prefill.finished(Deadline.after(0.01))
        if who != "prefill":
            decode.tell("hold", held)
        if who != "decode":
            ctypes.PyDLL(None).usleep(held)
        else:
            pause = Deadline.after(held / 1e6)
            while not pause.expired:
                prefill.finished(pause)
        sender.send([7])
        assert decode.end(7) == "SUCCESS"
        assert sender.wait(soon()) is KVPoll.SUCCESS
        serve(prefill, decode, 8)


def test_a_stopped_process_is_told_as_lost_with_its_rooms_and_taken_back_when_it_goes_on() -> None:
    told = Recorder()
    with sides(subscribers=[told]) as (prefill, decode):
        serve(prefill, decode, 1)
        decode.tell("ask", 7)
        sender = prefill.sender(RoomId(7))
        sender.init(1)
        while sender.poll() is KVPoll.BOOTSTRAPPING:
            prefill.finished(Deadline.after(0.01))
        os.kill(decode.process.pid, signal.SIGSTOP)
        lost = told.wait_for(PeerLost, Role.PREFILL)
        assert sender.wait(soon()) is KVPoll.FAILED
        failure = sender.failure()
        assert failure is not None
        assert failure.code is FailureCode.PEER_LOST
        assert lost.rooms == 1
        assert lost.why == failure.there_is
        assert lost.why == "its connection is gone, and 5 heartbeats in a row are missing, 1 s"
        missed = [e for e in told.of(HeartbeatMissed, Role.PREFILL) if e.at < lost.at]
        assert {e.peer for e in missed} == {lost.peer}
        assert max(e.in_a_row for e in missed) >= 4
        failed = told.wait_for(RoomEnded, Role.PREFILL, lambda e: e.room == 7)
        assert failed.failure is failure
        os.kill(decode.process.pid, signal.SIGCONT)
        assert decode.end(7) == "FAILED"
        serve(prefill, decode, 8)
        assert len(told.of(PeerPaired, Role.PREFILL)) == 2


def test_a_killed_process_of_this_machine_is_lost_at_once_whatever_the_heartbeats() -> None:
    with sides("PATIENT") as (prefill, decode):
        serve(prefill, decode, 1)
        decode.tell("ask", 7)
        sender = prefill.sender(RoomId(7))
        sender.init(1)
        while sender.poll() is KVPoll.BOOTSTRAPPING:
            prefill.finished(Deadline.after(0.01))
        decode.process.kill()
        assert sender.wait(soon()) is KVPoll.FAILED
        failure = sender.failure()
        assert failure is not None
        assert failure.there_is == f"process {decode.process.pid} has ended"


def test_a_prefill_that_is_not_there_is_named_and_costs_no_more_than_the_bootstrap_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        address = f"127.0.0.1:{once.getsockname()[1]}"
    cfg = Config(
        timeouts=Timeouts(request=300.0, bootstrap=1.0),
        liveness=LivenessConfig(interval=60.0, max_failures=9),
    )
    client = BootstrapClient("test", None)
    try:
        with (
            BootstrapServer() as bootstrap,
            DecodeManager(select("local"), pools(), Topology(), cfg) as decode,
        ):
            record = RankRecord(new_incarnation(), address, Topology(), 3000.0)
            client.register(bootstrap.address, record, soon())
            receiver = decode.receiver(bootstrap.address, RoomId(7))
            receiver.init()
            receiver.send_metadata([1])
            assert receiver.wait(soon()) is KVPoll.FAILED
            failure = receiver.failure()
            assert failure is not None
            assert failure.code is FailureCode.PEER_LOST
            assert failure.happened.startswith(f"lost prefill {address}")
            assert failure.there_is.startswith("nobody takes connections there: ")
            assert failure.there_is.endswith(" attempts in 1 s")
    finally:
        client.close(soon())
