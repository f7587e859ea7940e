from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pdcore.children import ChildError, Fatal, Gone
from pdcore.demo.messages import Ready, RoomFailed, RoomReceived, RoomSent, Stopped, WorkerSettings
from pdcore.demo.planning.groups import Groups, group_of
from pdcore.demo.planning.workload import from_distribution
from pdcore.demo.router import run_demo
from pdcore.demo.workers import Worker
from pdcore.model import Deadline, Role, RoomId

SMALL = WorkerSettings(model="gpt2", page_size=16, num_pages=64, slots=4, deadline=30)


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "pdcore", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model", "gpt2"],
        ["--model", "gpt2", "--chunk-pages", "7"],
        ["--model", "gpt2", "--aux", "tcp", "--page-size", "1"],
        ["--model", "deepseek-v2-lite", "--aux", "engine", "--concurrency", "1"],
        ["--model", "gemma-2b", "--transfer-model", "inline", "--option", "copy_threads=1"],
        [
            "--model",
            "qwen2.5-0.5b",
            "--transfer-model",
            "inline",
            "--option",
            "copy_threads=2",
            "--chunk-pages",
            "20",
        ],
    ],
    ids=" ".join,
)
def test_every_request_arrives_and_every_byte_is_verified(arguments: list[str]) -> None:
    done = demo(*arguments, "--requests", "12", "--memory", "0.25", "--json")
    assert done.stderr == ""
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert report["good"]
    assert report["verified"]["requests"] == 12
    assert report["verified"]["aux_rows"] == 12
    assert report["verified"]["bytes"] == report["bytes"] > 0
    assert [r["room"] for r in report["requests"]] == list(range(12))
    assert all(r["digest"] == r["expected_digest"] for r in report["requests"])
    assert len(report["peak_rss"]) == 3


def test_a_trace_is_replayed_and_the_report_is_text(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(
        "".join(json.dumps({"timestamp": i, "input_length": 16 * i + 1}) + "\n" for i in range(5))
    )
    done = demo("--trace", str(trace), "--requests", "5", "--model", "gpt2", "--memory", "0.1")
    assert done.returncode == 0
    assert "requests   5 of 5 arrived" in done.stdout
    assert "verified   15 pages, 8,847,360 bytes, 5 aux rows" in done.stdout


def test_a_request_that_no_pool_can_hold_is_refused_before_anything_starts(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 100000}\n')
    done = demo("--trace", str(trace), "--requests", "1", "--model", "gpt2", "--memory", "0.1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "WorkloadError: request 0 of 100000 tokens is longer than a pool" in done.stderr
    assert "use --memory 6.9" in done.stderr


def test_a_backend_that_cannot_run_is_explained_before_anything_starts() -> None:
    done = demo("--backend", "nowhere", "--requests", "1")
    assert done.returncode == 1
    assert done.stderr.startswith("SelectionError: no backend is named 'nowhere'\n")
    done = demo("--backend", "mooncake", "--requests", "1")
    assert done.returncode == 1
    assert "backend 'mooncake' is installed but cannot run here" in done.stderr


def children() -> list[int]:
    this = os.getpid()
    return [int(pid) for pid in Path(f"/proc/{this}/task/{this}/children").read_text().split()]


def ready(worker: Worker) -> Ready:
    event = worker.read(Deadline.after(60))
    assert isinstance(event, Ready)
    return event


def test_decode_judges_by_its_own_seed_and_not_by_what_was_sent() -> None:
    other_seed = WorkerSettings(model="gpt2", page_size=16, num_pages=64, slots=4, seed=1)
    with Worker(Role.PREFILL, SMALL) as prefill, Worker(Role.DECODE, other_seed) as decode:
        bootstrap = ready(prefill).bootstrap
        ready(decode)
        decode.serve(RoomId(3), 100, bootstrap)
        prefill.serve(RoomId(3), 100)
        event = decode.read(Deadline.after(60))
    assert isinstance(event, RoomReceived)
    assert event.digest != event.expected_digest
    assert event.mismatch.startswith("layer 0 k, token 0, head 0, dimension 0: 0x")
    assert "168 items differ" in event.mismatch
    assert "aux field logprobs" in event.mismatch


def test_a_worker_serves_a_room_once_and_ends_in_order() -> None:
    with Worker(Role.PREFILL, SMALL) as prefill, Worker(Role.DECODE, SMALL) as decode:
        bootstrap = ready(prefill).bootstrap
        ready(decode)
        for _ in range(2):
            decode.serve(RoomId(3), 100, bootstrap)
        prefill.serve(RoomId(3), 100)
        assert isinstance(prefill.read(Deadline.after(60)), RoomSent)
        events = [decode.read(Deadline.after(60)), decode.read(Deadline.after(60))]
        (failed,) = [e for e in events if isinstance(e, RoomFailed)]
        assert failed.error == "this worker has served the room before; use a new room"
        decode.hang_up()
        *_, stopped, gone = decode.finish(Deadline.after(60))
        assert isinstance(stopped, Stopped)
        assert gone == Gone(decode.pid, 0)


def test_a_worker_ends_when_its_parent_goes() -> None:
    with Worker(Role.DECODE, SMALL) as worker:
        ready(worker)
        worker.hang_up()
        stopped, gone = worker.finish(Deadline.after(60))
    assert isinstance(stopped, Stopped)
    assert isinstance(gone, Gone)
    assert gone.how == "exited with 0"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (WorkerSettings(backend="nowhere"), "no backend is named 'nowhere'"),
        (WorkerSettings(model="gpt-9"), "an error that pdcore does not know: KeyError: 'gpt-9'"),
    ],
    ids=["backend", "nobody expected it"],
)
def test_a_worker_that_cannot_start_says_why(
    settings: WorkerSettings, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with Worker(Role.DECODE, settings) as worker:
        event = worker.read(Deadline.after(60))
        assert isinstance(event, Fatal)
        assert event.error.startswith(why)
        assert worker.read(Deadline.after(60)) == Gone(worker.pid, 1)
    assert "Traceback" not in capfd.readouterr().err


TWO_RANKS = Groups(group_of("tp=2"), group_of("tp=2"))


@pytest.mark.parametrize("groups", [Groups(), TWO_RANKS], ids=str)
@pytest.mark.parametrize("victim", list(Role))
def test_a_worker_killed_in_the_middle_fails_the_run_without_hanging(victim: Role, groups: Groups) -> None:
    killed: list[int] = []

    def kill_victim(_ended: int) -> None:
        for pid in children():
            if not killed and f"pdcore.demo.{victim.value}" in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    short = msgspec.structs.replace(SMALL, deadline=5)
    report = run_demo(short, from_distribution(20, seed=0, longest=500), 4, kill_victim, groups)
    assert not report.good
    assert len(report.requests) + len({f.room for f in report.failures}) == 20
    title = f"{victim.value} rank 0" if groups is TWO_RANKS else victim.value
    assert any(f.error == f"the {title} worker is gone: it was ended by SIGKILL" for f in report.failures)
    assert children() == []


def test_a_run_whose_worker_cannot_start_leaves_no_process() -> None:
    with pytest.raises(ChildError, match="the prefill worker did not start"):
        run_demo(WorkerSettings(backend="nowhere"), from_distribution(1, 0, 10), 1, lambda _: None)
    assert children() == []
