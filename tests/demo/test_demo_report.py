from __future__ import annotations

import json

import attrs

from pdcore.demo.planning.groups import Groups, group_of
from pdcore.demo.report import DemoReport, RequestFailure, RequestReport


def request(room: int, mismatch: str = "") -> RequestReport:
    return RequestReport(
        room=room,
        tokens=30,
        pages=2,
        held=room,
        nbytes=500_000_000,
        writes=7,
        aux_rows=1,
        latency=0.010 + room / 1000,
        moving=(float(room), room + 1.5),
        digest="0a" * 8,
        expected_digest="0a" * 8,
        mismatch=mismatch,
    )


GOOD = DemoReport(
    "local (pdcore 0.1.0)",
    "memory",
    "gpt2",
    Groups(group_of("tp=2,pp=2"), group_of("dp=3")),
    2,
    2.0,
    (request(0), request(1)),
    (),
    (2**30, 2**30),
    1234,
)


def test_a_good_run_prints_what_was_moved_and_verified() -> None:
    assert GOOD.good
    assert "\n".join(GOOD.lines()) == (
        "backend    local (pdcore 0.1.0), transport memory, model gpt2\n"
        "ranks      prefill 4 (tp=2,pp=2), decode 3 (dp=3); 8 processes, 1,234 control messages\n"
        "requests   2 of 2 arrived\n"
        "bytes      1,000,000,000 (1.00 GB) in 14 writes and 2.00 s\n"
        "rate       0.50 GB/s with filling and comparing, 0.40 GB/s while requests were on their way\n"
        "latency    p50 10.50 ms, p99 10.99 ms (first send to received)\n"
        "verified   4 pages, 1,000,000,000 bytes, 2 aux rows, 1 pages that decode held, by token, layer and "
        "head, and against a digest computed from the seed\n"
        "memory     2.00 GiB at most, all processes together"
    )


def test_a_mismatch_is_not_good_not_counted_as_verified_and_named() -> None:
    bad = attrs.evolve(GOOD, requests=(request(0), request(1, "buffer layer.3.k (layer 3), page 1")))
    assert not bad.good
    assert bad.lines()[-1] == "MISMATCH   room 1: buffer layer.3.k (layer 3), page 1"
    assert bad.as_data()["verified"] == {
        "requests": 1,
        "pages": 2,
        "bytes": 500_000_000,
        "aux_rows": 1,
        "held_pages": 0,
    }


def test_a_missing_request_is_not_good() -> None:
    assert not attrs.evolve(GOOD, requests=(request(0),)).good


def test_failures_are_named_ten_at_most() -> None:
    failures = tuple(RequestFailure(room, "prefill", "peer_lost", f"peer {room} died") for room in range(12))
    bad = attrs.evolve(GOOD, failures=failures)
    assert not bad.good
    assert bad.lines()[-11] == "FAILED     room 0 on prefill: peer 0 died"
    assert bad.lines()[-1] == "           ... and 2 more, see --json"


def test_rooms_that_failed_alike_share_a_line() -> None:
    failures = [RequestFailure(room, "router", "", "never started") for room in range(12)]
    bad = attrs.evolve(GOOD, failures=(*failures, RequestFailure(3, "decode", "aborted", "it gave up")))
    assert bad.lines()[-2:] == [
        "FAILED     room 0 and 11 more on router: never started",
        "FAILED     room 3 on decode: it gave up",
    ]


def test_a_run_in_which_nothing_arrived_can_be_printed() -> None:
    none = DemoReport("local", "memory", "gpt2", Groups(), 3, 0.0, (), ())
    assert not none.good
    assert none.lines()[2] == "requests   0 of 3 arrived"


def test_the_data_can_be_written_as_json() -> None:
    data = json.loads(json.dumps(GOOD.as_data()))
    assert data["good"] is True
    assert data["bytes"] == 1_000_000_000
    assert data["transfer_seconds"] == 2.5
    assert data["requests"][1]["room"] == 1
    assert data["prefill"] == {"tp": 2, "pp": 2, "cp": 1, "dp": 1, "ranks": 4}
    assert data["decode"] == {"tp": 1, "pp": 1, "cp": 1, "dp": 3, "ranks": 3}
    assert (data["processes"], data["messages"], data["writes"]) == (8, 1234, 14)
