"""Which process a peer is, and when it has ended: with real processes in every state."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import msgspec
import pytest

from pdcore.host.process import ProcessIdentity, ProcessLife, is_stopped, life_of, start_time
from pdcore.model import Deadline

WAITING = "print(flush=True); input()"
NOW = Deadline.after(1e-6)


@contextmanager
def child(code: str) -> Iterator[tuple[subprocess.Popen[bytes], ProcessIdentity]]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        started = start_time(process.pid)
        assert started is not None
        try:
            yield process, attrs.evolve(ProcessIdentity.here(), pid=process.pid, started=started)
        finally:
            process.kill()


def test_this_process_lives() -> None:
    here = ProcessIdentity.here()
    assert here == ProcessIdentity.here()
    assert here.in_sight()
    assert here.shares_network()
    assert life_of(here, NOW) is ProcessLife.LIVES


def test_a_killed_process_has_ended_whether_or_not_somebody_reaps_it() -> None:
    with child(WAITING) as (process, identity):
        assert life_of(identity, NOW) is ProcessLife.LIVES
        process.kill()
        assert life_of(identity, Deadline.after(30)) is ProcessLife.ENDED  # a zombie
        process.wait(30)
        assert life_of(identity, NOW) is ProcessLife.ENDED


def test_a_stopped_process_lives_and_is_seen_to_be_stopped() -> None:
    with child(WAITING) as (process, identity):
        assert not is_stopped(identity)
        os.kill(process.pid, signal.SIGSTOP)
        assert life_of(identity, Deadline.after(0.05)) is ProcessLife.LIVES
        assert is_stopped(identity)
        assert not is_stopped(attrs.evolve(identity, started=identity.started + 1))
        assert not is_stopped(attrs.evolve(identity, boot="another"))
        os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.wait(30)
        assert not is_stopped(identity)


def test_a_process_whose_first_thread_has_ended_lives_until_the_last_one_has() -> None:
    code = (
        "import ctypes, threading\n"
        "def serve():\n"
        "    print(flush=True)\n"
        "    input()\n"
        "threading.Thread(target=serve).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"  # exit, of this thread alone
    )
    with child(code) as (process, identity):
        assert life_of(identity, Deadline.after(0.05)) is ProcessLife.LIVES
        process.kill()
        assert life_of(identity, Deadline.after(30)) is ProcessLife.ENDED


def test_a_pid_that_is_used_again_is_another_process() -> None:
    here = ProcessIdentity.here()
    assert life_of(attrs.evolve(here, started=here.started - 1), NOW) is ProcessLife.ENDED


def test_a_process_of_another_boot_or_namespace_is_never_taken_for_ended() -> None:
    nobody = attrs.evolve(ProcessIdentity.here(), pid=2**22 - 1, started=1)
    assert life_of(nobody, NOW) is ProcessLife.ENDED
    for strange in (
        attrs.evolve(nobody, boot="another"),
        attrs.evolve(nobody, pids=1),
        attrs.evolve(nobody, pids=0),
        attrs.evolve(nobody, clock=1),
    ):
        assert life_of(strange, NOW) is ProcessLife.OUT_OF_SIGHT


@pytest.mark.skipif(os.geteuid() != 0, reason="making namespaces needs root")
def test_a_process_of_another_namespace_says_so() -> None:
    code = (
        "import sys, msgspec; from pdcore.host.process import ProcessIdentity\n"
        "sys.stdout.buffer.write(msgspec.json.encode(ProcessIdentity.here()))"
    )
    here = ProcessIdentity.here()
    for flags, differs in ((["--pid", "--fork", "--mount-proc"], "pids"), (["--net"], "network")):
        command = ["unshare", *flags, sys.executable, "-c", code]
        told = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
        there = attrs.asdict(identity(told))
        assert there[differs] != attrs.asdict(here)[differs]
    told = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", code],
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout
    assert identity(told).pids == 0, "its /proc is not that of its pids"


def identity(told: bytes) -> ProcessIdentity:
    return msgspec.json.decode(told, type=ProcessIdentity)


def test_the_start_time_is_read_past_a_process_name_with_parentheses() -> None:
    rename = "import ctypes; ctypes.CDLL(None).prctl(15, b'a) S 1 (b', 0, 0, 0); print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", rename], stdin=pipe, stdout=pipe) as process:
        before = start_time(process.pid)
        assert process.stdout is not None
        process.stdout.readline()
        assert start_time(process.pid) == before
        process.communicate(b"\n", timeout=30)
