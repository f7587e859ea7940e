"""Runs that this machine has no memory for are refused before they start; progress is for terminals."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from pdcore.cli import main
from pdcore.demo.planning import capacity
from pdcore.demo.planning.capacity import PROCESS_BYTES, CapacityError, Estimate, FreeMemory

MEMINFO = "MemTotal: 33554432 kB\nMemFree: 1024 kB\nMemAvailable: 16777216 kB\n"


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def group(name: str, limit: str, used: int, cached: int = 0) -> dict[str, str]:
    newer = "/memory/" not in name
    names = ("memory.max", "memory.current") if newer else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    stat = f"anon 1\n{'' if newer else 'total_'}inactive_file {cached}\n"
    return {f"{name}/{names[0]}": limit, f"{name}/{names[1]}": str(used), f"{name}/memory.stat": stat}


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("cgroup", "files", "room"),
    [
        ("0::/\n", {}, 16 << 30),
        ("0::/\n", group(V2, "max\n", 5), 16 << 30),
        ("0::/a/b\n", group(f"{V2}/a/b", "max\n", 5), 16 << 30),
        ("0::/a/b\n", group(f"{V2}/a/b", str(4 << 30), 1 << 30, 1 << 29), (3 << 30) + (1 << 29)),
        ("0::/a/b\n", group(f"{V2}/a", str(2 << 30), 1 << 30) | group(f"{V2}/a/b", "max", 0), 1 << 30),
        ("4:memory:/host/only\n0::/\n", group(f"{V1}/.", str(6 << 30), 1 << 30), 5 << 30),
        ("4:memory:/x\n3:cpu:/y\n", group(f"{V1}/x", str(6 << 30), 2 << 30, 1 << 30), 5 << 30),
        ("4:memory:/x\n", group(f"{V1}/x", "9223372036854771712", 1), 16 << 30),
    ],
    ids=["none", "root", "no limit", "v2", "v2 above", "v1 of a container", "v1", "v1 without limit"],
)
def test_the_room_is_the_least_of_machine_and_control_groups(
    tmp_path: Path, cgroup: str, files: dict[str, str], room: int
) -> None:
    assert FreeMemory.here(machine(tmp_path, cgroup, files)).nbytes == room


def test_this_machine_has_some() -> None:
    assert FreeMemory.here().nbytes > 0


def test_an_estimate_that_does_not_fit_is_refused_with_its_figures() -> None:
    estimate = Estimate(pools=3 << 30, processes=4)
    estimate.refuse_more_than(FreeMemory(estimate.nbytes, "a limit"), "spend less")
    with pytest.raises(CapacityError) as told:
        estimate.refuse_more_than(FreeMemory(2 << 30, "a limit"), "spend less")
    assert str(told.value) == (
        "this run would take about 3.4 GiB of memory, which are not there\n"
        "  there is: 2.0 GiB (a limit); pools of 3.0 GiB in 4 processes of about "
        f"{PROCESS_BYTES >> 20} MiB beside\n"
        "  to do: spend less"
    )


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["demo", "--model", "llama-3-70b", "--memory", "99999", "--concurrency", "900"], "--concurrency"),
        (["bench", "--mib", "9999999"], "use a smaller --mib"),
    ],
)
def test_commands_refuse_before_a_process_starts(
    arguments: list[str],
    advice: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    assert main(arguments) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.split(": ")[0]) == ("", "CapacityError")
    assert advice in told.err


def test_little_shared_memory_is_told_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert capacity.shm_shortage(10**9) is not None
    monkeypatch.setattr(capacity, "SHM", tmp_path / "none")
    assert capacity.shm_shortage(10**9) is None


PROGRESS = """
from pdcore.cli import progress
progress.SHOW_AFTER = 1e-9
with progress.counting("requests", 3) as tell:
    tell(1)
with progress.telling("bench") as tell:
    tell("measuring")
"""


@pytest.mark.parametrize(
    ("terminal", "environ", "shown"),
    [(True, {"TERM": "xterm"}, True), (True, {"TERM": "dumb"}, False), (False, {"FORCE_COLOR": "1"}, False)],
    ids=["terminal", "dumb terminal", "file"],
)
def test_progress_is_shown_on_a_terminal_only(terminal: bool, environ: dict[str, str], shown: bool) -> None:
    near, far = pty.openpty() if terminal else os.pipe()
    process = subprocess.run(
        [sys.executable, "-c", PROGRESS],
        stderr=far,
        stdout=subprocess.PIPE,
        env=os.environ | environ,
        timeout=60,
        check=True,
    )
    os.write(far, b"end")
    said = b""
    while not said.endswith(b"end"):
        said += os.read(near, 65536)
    os.close(near)
    os.close(far)
    assert process.stdout == b""
    assert (b"requests" in said, b"measuring" in said or b"bench" in said) == (shown, shown)
