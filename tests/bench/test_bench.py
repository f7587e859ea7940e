from __future__ import annotations

import json

import attrs
import numpy as np

from pdcore.bench.cases import Effort, Large, Planning, Tiny, plan_by_loop
from pdcore.bench.load import pages_of
from pdcore.bench.messages import Load
from pdcore.bench.report import BenchReport
from pdcore.bench.stuck_peer import StuckPeer
from pdcore.bench.suite import run_bench
from pdcore.cli import main
from pdcore.demo.messages import WorkerSettings
from pdcore.model import Role

TINY_EFFORT = Effort(tokens=64, rounds=2, tiny=200, sequential=20, tiny_rounds=1)

REPORT = BenchReport(
    backend="local",
    large=(
        Large("contiguous, page size 16", 2**29, 64, raw=0.05, pdcore=0.052, ratio=0.96),
        Large("scattered, page size 16", 2**29, 16384, raw=0.06, pdcore=0.1, ratio=0.6),
    ),
    tiny=(
        Tiny(2000, 1, 2500.0, p50=0.0004, p99=0.001, cpu_prefill=2e-4, cpu_decode=1e-4, raw=2e-5),
        Tiny(10000, 64, 3900.0, p50=0.015, p99=0.03, cpu_prefill=2e-4, cpu_decode=1e-4, raw=2e-5),
    ),
    beside=StuckPeer(alone=4000.0, beside=3800.0, ratio=0.95),
    planning=Planning(262144, numpy=0.0025, loop=0.05, ratio=20.0, validation=0.001),
)


def test_every_case_runs_between_two_processes() -> None:
    heard: list[str] = []
    report = run_bench(WorkerSettings(), TINY_EFFORT, heard.append)
    assert [c.name for c in report.large] == [
        f"{kind}, page size {size}" for size in Effort().page_sizes for kind in ("contiguous", "scattered")
    ]
    assert {c.nbytes for c in report.large} == {64 * 128 * 1024}
    assert [c.entries for c in report.large[::2]] == [64, 64, 64]
    assert report.large[-1].entries > 3000
    assert [(t.in_flight, t.requests) for t in report.tiny] == [(1, 20), (64, 200)]
    assert report.beside.alone > 0
    assert report.beside.beside > 0
    assert report.planning.entries > 260_000
    assert len(heard) == 2 + len(Effort().page_sizes)


def test_a_backend_that_is_not_there_is_explained() -> None:
    assert main(["bench", "--backend", "nowhere", "--quick"]) == 1


def test_the_report_says_which_targets_were_missed() -> None:
    assert [(t.name, t.reached) for t in REPORT.targets] == [
        ("large contiguous, rate over raw", True),
        ("planning, times faster than a loop", True),
        ("requests beside a stopped peer, rate over alone", True),
        ("tiny requests per second, 64 in flight", False),
        ("tiny requests one by one, p50 in ms", True),
    ]
    lines = REPORT.lines()
    assert "contiguous, page size 16  512       64     10.74        10.32  0.960" in lines
    assert "64 in flight beside a stopped peer: 3,800 requests/s, alone 4,000, ratio 0.950" in lines
    assert "64                    3,900  15.000  30.000         200        100      20" in lines
    assert "MISSED   tiny requests per second, 64 in flight: 3900, to be at least 4000" in lines


def test_the_report_can_be_written_as_json() -> None:
    data = json.loads(json.dumps(REPORT.as_data()))
    assert data["large"][1]["ratio"] == 0.6
    assert data["targets"][3] == {
        "name": "tiny requests per second, 64 in flight",
        "value": 3900.0,
        "bound": 4000,
        "least": True,
        "reached": False,
    }


def test_slots_share_no_page_and_scattered_sides_differ() -> None:
    load = Load(first_room=1, requests=9, in_flight=8, pages=4, scattered=True)
    prefill, decode = (pages_of(load, role, 100) for role in (Role.PREFILL, Role.DECODE))
    assert len(set(np.concatenate(prefill).tolist())) == 32
    assert not np.array_equal(np.concatenate(prefill), np.concatenate(decode))


def test_the_loop_names_each_block_of_each_buffer() -> None:
    blocks = plan_by_loop([10, 20], np.array([3, 4, 7]), np.array([0, 1, 5]))
    assert blocks == [(30, 0, 20), (70, 50, 10), (60, 0, 40), (140, 100, 20)]


def test_absolute_targets_are_for_engines_that_cost_little() -> None:
    sequential, flying = REPORT.tiny
    slow = attrs.evolve(REPORT, tiny=(attrs.evolve(sequential, raw=1e-3), flying))
    assert [t.name for t in slow.targets] == [t.name for t in REPORT.targets[:3]]
