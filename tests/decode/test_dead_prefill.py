"""Pages that a prefill process was writing when it died: when decode gets them back, and what never touches
them then. Real engines, real kills, bytes looked at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest

from pdcore import BootstrapServer, Config, DecodeManager, KVLayout, Pools, Topology, select
from pdcore.config.records import LivenessConfig
from pdcore.decode import KVReceiver
from pdcore.model import Deadline, KVPoll, RoomId

PAGES = 256
LAYOUT = KVLayout.heads(layers=range(4), kv_heads=8, head_dim=128, page_size=16, num_pages=PAGES)
"""64 MiB: more than sockets hold."""
CONFIG = Config(liveness=LivenessConfig(interval=0.2, max_failures=5))
MARK = 0xEE
HALF_SENT = 100
"""A room of which prefill never sends the second half."""

PREFILL = """
import sys
import numpy as np
from pdcore import Config, Deadline, KVLayout, Pools, PrefillManager, RoomId, Topology, select
from pdcore.config.records import LivenessConfig
backend, bootstrap, pages = sys.argv[1], sys.argv[2], int(sys.argv[3])
layout = KVLayout.heads(layers=range(4), kv_heads=8, head_dim=128, page_size=16, num_pages=pages)
pools = Pools.allocate(layout)
for array in pools.arrays:
    array[:] = 0x55
config = Config(liveness=LivenessConfig(interval=0.2, max_failures=5))
with PrefillManager(select(backend), pools, Topology(), bootstrap, config) as prefill:
    print("ready", flush=True)
    for room in map(int, sys.stdin):
        sender = prefill.sender(RoomId(room), Deadline.after(60))
        sender.init(pages)
        sender.send(np.random.default_rng(room).permutation(pages)[: pages // 2 if room == 100 else pages])
"""


@contextmanager
def prefill_process(backend: str, bootstrap: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", PREFILL, backend, bootstrap, str(PAGES)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool]) -> None:
    deadline = Deadline.after(60)
    while not condition():
        assert not deadline.expired


def stopped_while_it_writes(
    process: subprocess.Popen[bytes], decode: DecodeManager, bootstrap: str, arrays: Sequence[np.ndarray]
) -> KVReceiver:
    """Return the room that a prefill process was filling when it was stopped."""
    assert process.stdin is not None
    for room in range(1, 20):
        for array in arrays:
            array[:] = 0
        receiver = decode.receiver(bootstrap, RoomId(room), Deadline.after(60))
        receiver.init()
        receiver.send_metadata(np.arange(PAGES))
        process.stdin.write(f"{room}\n".encode())
        process.stdin.flush()
        until(lambda: any(array[:, 0].any() for array in arrays))
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        if not all(array.all() for array in arrays):
            return receiver
        process.send_signal(signal.SIGCONT)  # it was through already
        assert receiver.wait(Deadline.after(60)) is KVPoll.SUCCESS
        receiver.clear()
    raise AssertionError("no transfer was caught")


@pytest.mark.parametrize("backend", ["mooncake_tcp", "nixl_tcp", "nixl"])
def test_pages_of_a_killed_prefill_come_back_and_stay_as_they_are(backend: str) -> None:
    pools = Pools.allocate(LAYOUT)
    with (
        BootstrapServer() as bootstrap,
        DecodeManager(select(backend), pools, Topology(), CONFIG) as decode,
        prefill_process(backend, bootstrap.address) as process,
    ):
        receiver = stopped_while_it_writes(process, decode, bootstrap.address, pools.arrays)
        assert receiver.wait(Deadline.after(60)) is KVPoll.FAILED
        # A stopped process is not dead: its bytes may come at any time.
        until(lambda: "stopped" in receiver.unsafe_because() or "lives" in receiver.unsafe_because())
        assert not receiver.release_safe()
        process.kill()  # nobody reaps it yet
        until(receiver.release_safe)
        for array in pools.arrays:
            array[:] = MARK
        decode.close()  # what the engine may have had to write is written by now
        assert all((array == MARK).all() for array in pools.arrays)


BESIDE = """
import subprocess, sys
program, backend, pages, *addresses = sys.argv[1:]
both = [
    subprocess.Popen([sys.executable, "-c", program, backend, address, pages], stdin=subprocess.PIPE)
    for address in addresses
]
for order in sys.stdin:
    which, what = order.split()
    if what == "kill":
        both[int(which)].kill()  # and nobody reaps it
    else:
        both[int(which)].stdin.write(what.encode() + b"\\n")
        both[int(which)].stdin.flush()
for process in both:
    process.kill()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="making a namespace needs root")
def test_a_process_that_cannot_be_seen_is_told_of_by_one_that_lives_beside_it() -> None:
    inside = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", BESIDE]
    with (
        BootstrapServer() as first,
        BootstrapServer() as second,
        DecodeManager(select("nixl_tcp"), Pools.allocate(LAYOUT), Topology(), CONFIG) as decode,
        subprocess.Popen(
            [*inside, PREFILL, "nixl_tcp", str(PAGES), first.address, second.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as host,
    ):
        try:
            assert host.stdout is not None
            assert [host.stdout.readline() for _ in range(2)] == [b"ready\n", b"ready\n"]
            survivor, doomed = (
                decode.receiver(there.address, RoomId(room), Deadline.after(120))
                for there, room in ((second, 1), (first, HALF_SENT))
            )
            order(host, f"0 {HALF_SENT}")
            doomed.init()
            doomed.send_metadata(np.arange(PAGES))
            until(lambda: doomed.poll() is KVPoll.TRANSFERRING)
            order(host, "0 kill")
            assert doomed.wait(Deadline.after(60)) is KVPoll.FAILED
            until(lambda: "nobody here can see whether it has ended" in doomed.unsafe_because())
            assert decode.unsafe().pages == PAGES
            order(host, "1 1")
            survivor.init()
            until(doomed.release_safe)
            assert not decode.unsafe().pages
        finally:
            host.kill()


def order(host: subprocess.Popen[bytes], text: str) -> None:
    assert host.stdin is not None
    host.stdin.write(f"{text}\n".encode())
    host.stdin.flush()
