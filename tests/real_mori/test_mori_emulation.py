"""The emulated NIC does what its settings ask for, and nothing to other peers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mori_ends import SIZE

OVER = "SUCCESS success"


def run(body: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run lines in a process with these settings: the NIC reads them once."""
    code = f"from mori_ends import *\nfrom mori.io import *\n{body}"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def lines(body: str, **settings: str) -> list[str]:
    """Return what the lines print, without MORI's log, which goes there too; they must not fail."""
    done = run(body, MORI_GLOBAL_LOG_LEVEL="critical", **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


WRITE = """
near = Near.start(random_bytes(1))
with far_end() as far:
    status = near.write(far, {entries})
    print(status.Code().name, int(far.content().any()))
    code, message = near.finish(status)
    print(code.name, message)
    print(int((far.content() == near.content).all()))
"""
WHOLE = WRITE.format(entries="[0], [0], [SIZE]")


def test_a_delayed_write_is_in_progress_and_lands_later() -> None:
    assert lines(WHOLE, VERBS_DELAY_US="1000000") == ["IN_PROGRESS 0", OVER, "1"]


def test_without_a_device_mori_says_so_and_the_process_lives() -> None:
    body = """
try:
    start_engine("alone")
except RuntimeError as error:
    print(error)
"""
    assert lines(body, VERBS_NO_DEVICE="1") == [
        "no active RDMA device on this host; set MORI_DISABLE_AUTO_XGMI=0 to enable XGMI-only fallback"
    ]


def test_a_message_above_the_nics_limit_is_refused() -> None:
    first, second, landed = lines(WHOLE, VERBS_MAX_MSG="65536")
    assert first == "ERR_INVALID_ARGS 0"
    assert second == (
        f"ERR_INVALID_ARGS merged RDMA WR 0 length {SIZE} exceeds local max_msg_sz 65536; "
        "enable RDMA transfer chunking or reduce batch size"
    )
    assert landed == "0"


def test_a_chunked_message_passes_under_the_nics_limit() -> None:
    chunked = WHOLE.replace("random_bytes(1)", "random_bytes(1), enable_transfer_chunking=True")
    assert lines(chunked, VERBS_MAX_MSG="65536")[1:] == [OVER, "1"]


def test_an_unreachable_peer_holds_up_no_other() -> None:
    body = """
near = Near.start(random_bytes(1))
with far_end() as dead, far_end() as alive:
    print(near.finish(near.write(dead, [0], [0], [4096]))[1])
    dead.kill()
    lost = near.write(dead, [0], [0], [4096])
    print(near.finish(near.write(alive, [0], [0], [SIZE]))[1], lost.Code().name)
    print(near.finish(lost)[1].split(" Hint")[0])
"""
    assert lines(body, VERBS_RETRY_MS="2000") == [
        "success",
        "success IN_PROGRESS",
        "transport retry counter exceeded",
    ]


@pytest.mark.parametrize("size", [0, 4096])
def test_memory_that_cannot_be_pinned_ends_the_process_that_owns_it(size: int) -> None:
    body = f"""
import mmap
near = Near.start(random_bytes(1))
hole = mmap.mmap(-1, 4096)
address = np.frombuffer(hole, np.uint8).ctypes.data
hole.close()
near.memory = near.engine.register_memory(address, {size}, -1, MemoryLocationType.CPU)
with far_end() as far:
    near.write(far, [0], [0], [{size}])
"""
    done = run(body, MORI_GLOBAL_LOG_LEVEL="error")
    assert done.returncode == -6, done.stderr
    assert "ibv_reg_mr and dmabuf registration both failed" in done.stdout


def test_queue_pairs_and_regions_are_used_again() -> None:
    """The emulated NIC has 1024 queue pairs; MORI leaves none of a dropped engine behind."""
    body = """
import os, time
content, target = random_bytes(1), np.zeros(SIZE, np.uint8)
for turn in range(140):
    near, far = Near.start(content, qp_per_transfer=4), Near.start(target, qp_per_transfer=4)
    near.engine.register_remote_engine(far.engine.get_engine_desc())
    far.engine, engine = far.engine.get_engine_desc(), far.engine
    code, message = near.finish(near.write(far, [turn], [turn], [4096]))
    assert code == StatusCode.SUCCESS, message
    near.engine.deregister_memory(near.memory)
    engine.deregister_memory(far.memory)
    del near, far, engine
    if turn == 0:
        threads = len(os.listdir("/proc/self/task"))
until = time.monotonic() + 30  # a thread of the library's may end a moment later
while (more := len(os.listdir("/proc/self/task")) - threads) > 0 and time.monotonic() < until:
    time.sleep(0.01)
print(max(more, 0), int((target[:4235] == content[:4235]).all()))
"""
    assert lines(body) == ["0 1"]
