"""Too few file descriptors: a typed error that names the limit, never an abort, and who runs goes on."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from pdcore.errors import BootstrapError, EngineError
from pdcore.host.shortage import free_descriptors, require_descriptors

COMMON = """
import contextlib, os, resource, sys
from pdcore import (
    BootstrapServer, Deadline, DecodeManager, KVLayout, KVPoll, PDCoreError, Pools, PrefillManager, RoomId,
    Topology, select,
)
from pdcore.host.shortage import free_descriptors

backend = select(sys.argv[1])
layout = KVLayout.heads(layers=range(2), kv_heads=2, head_dim=16, page_size=4, num_pages=8)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

def limit(free):
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(hard - free_descriptors()) + free, hard))

def move(prefill, decode, bootstrap, room, seconds):
    receiver = decode.receiver(bootstrap.address, RoomId(room), Deadline.after(seconds))
    receiver.init()
    receiver.send_metadata([0])
    sender = prefill.sender(RoomId(room), Deadline.after(seconds))
    sender.init(1)
    sender.send([1])
    state = receiver.wait(Deadline.after(60))
    why = receiver.failure()
    receiver.clear()
    sender.clear()
    return "SUCCESS" if state is KVPoll.SUCCESS else str(why)
"""

START = """
for free in map(int, sys.argv[2:]):
    limit(free)
    try:
        with (
            BootstrapServer() as bootstrap,
            PrefillManager(backend, Pools.allocate(layout), Topology(), bootstrap.address) as prefill,
            DecodeManager(backend, Pools.allocate(layout), Topology()) as decode,
        ):
            print(free, move(prefill, decode, bootstrap, 1, 20), flush=True)
    except PDCoreError as error:
        print(free, type(error).__name__, " ".join(str(error).split()), flush=True)
"""

LATER = """
with (
    BootstrapServer() as bootstrap,
    PrefillManager(backend, Pools.allocate(layout), Topology(), bootstrap.address) as prefill,
    DecodeManager(backend, Pools.allocate(layout), Topology()) as decode,
):
    for room, free in enumerate(map(int, sys.argv[2:])):
        limit(free)
        print(free, " ".join(move(prefill, decode, bootstrap, room, 4).split()), flush=True)
    limit(1000)
    print("then", move(prefill, decode, bootstrap, 100, 30), flush=True)
"""


def run(program: str, backend: str, *limits: int) -> list[list[str]]:
    """Return what a process of its own says of each limit; it must not have been aborted."""
    command = [sys.executable, "-c", COMMON + program, backend, *map(str, limits)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [line.split(maxsplit=2) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("backend", "limits"),
    [
        ("local", range(0, 62, 4)),
        ("mooncake_tcp", (0, 14, 30, 46, 90)),
        ("nixl_tcp", (0, 14, 30, 46, 120)),
    ],
)
def test_with_few_descriptors_managers_start_or_say_what_is_missing(
    backend: str, limits: tuple[int, ...]
) -> None:
    told = run(START, backend, *limits)
    assert [int(free) for free, *_ in told] == list(limits)
    for _, how, *text in told:
        if how != "SUCCESS":
            assert how in ("EngineError", "BootstrapError")
            assert "there are too few file descriptors" in text[0]
            assert "ulimit -n" in text[0]
    assert told[-1][1] == "SUCCESS"


def test_descriptors_that_run_out_later_fail_the_room_by_name_and_the_managers_live_on() -> None:
    *starved, then = run(LATER, "local", 0, 2, 4, 6, 9, 12)
    for free, *text in starved:
        assert "descriptors" in " ".join(text) or "open files" in " ".join(text) or text == ["SUCCESS"], free
    assert "SUCCESS" not in starved[0]
    assert then == ["then", "SUCCESS"]


def test_the_error_names_the_limit_what_is_free_and_what_to_do() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = soft - int(free_descriptors())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 5, hard))
    try:
        require_descriptors(5, "to begin")
        with pytest.raises(EngineError, match="there are too few file descriptors to begin") as caught:
            require_descriptors(6, "to begin")
        with pytest.raises(BootstrapError):
            require_descriptors(6, "to begin", BootstrapError)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.there_is == f"5 are free of the {used + 5} that this process may open, 6 are needed"
    assert "ulimit -n" in caught.value.to_do
