"""A pause is not a death: peers that stand still, are stopped, are dead, or were never there."""

from __future__ import annotations

import ctypes
import os
import shutil
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
from relay import Relay
from serving.ports import free_port

from pdcore import (
    BootstrapServer,
    Config,
    ControlConfig,
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
STARVED = attrs.evolve(QUICK, liveness=LivenessConfig(interval=0.5, max_failures=4))
CONFIGS = {"QUICK": QUICK, "PATIENT": PATIENT}

DECODE = """
import ctypes, os, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
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


def test_a_side_that_stands_still_while_its_kernel_answers_is_not_lost() -> None:
    """As a process that gets no CPU or no memory for longer than the limit, its libzmq's thread included."""
    memory, port = pools(), free_port()
    fill(memory, 1)
    told = Recorder()
    with Relay(f"127.0.0.1:{port}") as relay, BootstrapServer() as bootstrap:
        prefilling = attrs.evolve(STARVED, control=ControlConfig(port=port), advertise=relay.address)
        with (
            PrefillManager(
                select("local"), memory, Topology(), bootstrap.address, prefilling, [told]
            ) as prefill,
            DecodeManager(select("local"), pools(), Topology(), STARVED, [told]) as decode,
        ):
            receiver = decode.receiver(bootstrap.address, RoomId(7))
            receiver.init()
            receiver.send_metadata([7])
            sender = prefill.sender(RoomId(7))
            sender.init(1)
            while sender.poll() is KVPoll.BOOTSTRAPPING:
                prefill.finished(Deadline.after(0.01))
            relay.flows.clear()
            for role in Role:
                told.wait_for(HeartbeatMissed, role, lambda missed: missed.in_a_row >= 5)
            relay.flows.set()
            sender.send([7])
            assert receiver.wait(soon()) is KVPoll.SUCCESS, receiver.failure()
            assert sender.wait(soon()) is KVPoll.SUCCESS, sender.failure()
            assert not told.of(PeerLost)


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
        assert lost.why == "its process is stopped, and 5 heartbeats in a row are missing, 1 s"
        missed = [e for e in told.of(HeartbeatMissed, Role.PREFILL) if e.at < lost.at]
        assert {e.peer for e in missed} == {lost.peer}
        assert max(e.in_a_row for e in missed) >= 4
        failed = told.wait_for(RoomEnded, Role.PREFILL, lambda e: e.room == 7)
        assert failed.failure is failure
        os.kill(decode.process.pid, signal.SIGCONT)
        assert decode.end(7) == "FAILED"
        serve(prefill, decode, 8)
        assert len(told.of(PeerPaired, Role.PREFILL)) == 2


UNPLUGGED = """
import fcntl, os, socket, struct, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
from pair import fill, paired, soon
from test_pauses import QUICK
from pdcore import Deadline, KVPoll, RoomId
from pdcore.wire import sockets

sockets.STANDSTILLS = 1000  # what ends the connection is the kernel, or nothing

def plugged(yes):
    with socket.socket() as any:
        fcntl.ioctl(any, 0x8914, struct.pack("16sh22x", b"lo", 1 if yes else 0))  # SIOCSIFFLAGS, IFF_UP

plugged(True)
with paired(QUICK) as pair:
    pair.move(1, [1], [1])
    receiver = pair.decode.receiver(pair.bootstrap.address, RoomId(7))
    receiver.init()
    receiver.send_metadata([7])
    sender = pair.prefill.sender(RoomId(7))
    sender.init(1)
    while sender.poll() is KVPoll.BOOTSTRAPPING:
        pair.prefill.finished(Deadline.after(0.01))
    plugged(False)
    for end in (sender, receiver):
        assert end.wait(soon()) is KVPoll.FAILED
        print(end.failure().there_is)
    plugged(True)
"""


def test_a_machine_that_is_gone_is_lost_after_the_limit_though_nothing_hangs_up() -> None:
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("no network namespace can be made here")
    run = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", UNPLUGGED, os.path.dirname(__file__)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    gone = "its connection is gone, and 5 heartbeats in a row are missing, 1 s"
    assert run.stdout.splitlines() == [gone, gone]


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
