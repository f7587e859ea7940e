"""The demo with several processes on each side: every byte checked by token, layer and head."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

import pytest

from pdcore.cli import main
from pdcore.demo.content.models import MODELS
from pdcore.demo.messages import WorkerSettings
from pdcore.demo.planning.fit import refuse_misfits
from pdcore.demo.planning.groups import Groups, group_of
from pdcore.demo.planning.workload import from_distribution
from pdcore.demo.router import run_demo
from pdcore.model import Role, RoomId
from pdcore.pairing.topology import DPChoice, Topology

FEW = ("--requests", "3", "--longest", "200", "--concurrency", "2", "--memory", "1", "--json")


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "pdcore", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


def verified(*arguments: str) -> Mapping[str, int]:
    """Run three requests; return what was verified, which is all of it."""
    done = demo(*FEW, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "" or "--backend" in arguments  # engines log there
    report = json.loads(done.stdout)
    assert report["good"]
    counts: dict[str, int] = report["verified"]
    assert counts["requests"] == 3
    assert counts["bytes"] == report["bytes"]
    assert counts["aux_rows"] == 3 * report["decode"]["tp"]
    assert all(r["digest"] == r["expected_digest"] for r in report["requests"])
    assert report["processes"] == 1 + report["prefill"]["ranks"] + report["decode"]["ranks"]
    assert len(report["peak_rss"]) == report["processes"]
    assert report["messages"] > 0
    return counts


def test_a_hybrid_model_comes_from_two_stages_of_two_ranks_to_one() -> None:
    counts = verified("--model", "jamba-v0.1", "--prefill", "tp=2,pp=2", "--decode", "tp=1")
    jamba, whole = MODELS["jamba-v0.1"], Topology()
    state = 3 * jamba.slot_bytes(16, whole)
    assert counts["bytes"] == state + counts["pages"] * jamba.page_bytes(16, whole)


def test_a_sliding_window_goes_from_one_rank_to_two_in_chunks() -> None:
    verified("--model", "gemma-3-4b", "--decode", "tp=2", "--chunk-pages", "5")


def test_latents_and_their_index_come_from_one_of_two_ranks() -> None:
    counts = verified("--model", "deepseek-v3.2", "--prefill", "tp=2", "--prefix", "0.5")
    assert 0 < counts["held_pages"] <= counts["pages"]


def test_a_full_prefix_hit_still_brings_state_from_the_replica_that_decode_asks_for() -> None:
    arguments = ("--prefill", "tp=2,dp=2", "--decode", "dp=2", "--dp", "query", "--prefix", "1")
    counts = verified("--model", "jamba-v0.1", *arguments)
    assert counts["pages"] == 0
    assert counts["held_pages"] > 0
    assert counts["bytes"] == 3 * MODELS["jamba-v0.1"].slot_bytes(16, Topology())


@pytest.mark.parametrize("senders", ["all", "rank0"])
def test_context_parallel_ranks_send_each_byte_once(senders: str) -> None:
    verified("--model", "gpt2", "--prefill", "cp=2", "--cp-senders", senders)


@pytest.mark.parametrize("backend", ["mooncake_tcp", "nixl"])
def test_two_ranks_feed_one_over_a_real_engine(backend: str) -> None:
    verified("--backend", backend, "--model", "qwen2.5-0.5b", "--prefill", "tp=2")


def test_ranks_that_do_not_fit_fail_at_once_and_both_sides_say_why(capfd: pytest.CaptureFixture[str]) -> None:
    settings = WorkerSettings(model="llama-3-8b", num_pages=16)
    groups = Groups(group_of("tp=2"), group_of("tp=3"))
    report = run_demo(settings, from_distribution(9, 0, 200), 8, lambda _: None, groups)
    misfit = "topology.tp_size: prefill 2, decode 3"
    stderr = capfd.readouterr().err
    logged = [line for line in stderr.splitlines() if line.startswith("cannot pair with ")]
    assert {"prefill" in line for line in logged} == {True, False}
    assert stderr.count(misfit) == len(logged)
    assert report.requests == ()
    assert misfit in report.failures[0].error
    assert report.failures[-1].error == "never started: prefill and decode do not fit together"


ILLEGAL = {
    "llama-3-8b tp=2 tp=3": "on each 1, 2, 4 or a multiple of 8 (the model has 8 KV heads)",
    "qwen2.5-0.5b tp=3 tp=1": "on each 1 or a multiple of 2 (the model has 2 KV heads)",
    "gpt2 pp=2 pp=3": "use pp_size 1 or 2 on the decode side",
    "gpt2 cp=2 cp=2": "use cp_size 1 on the decode side",
    "gpt2 tp=1 tp=2,pp=2,cp=2": "use pp_size 1 on the decode side; use cp_size 1 on the decode side",
}


@pytest.mark.parametrize("case", ILLEGAL)
def test_groups_that_do_not_fit_are_refused_before_a_process_starts(
    case: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    model, prefill, decode = case.split()
    assert main(["demo", "--model", model, "--prefill", prefill, "--decode", decode]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("IncompatiblePeerError: cannot pair with the decode group")
    assert ILLEGAL[case] in told.err


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_dealt_out_to_the_groups_that_its_heads_allow(model: str) -> None:
    for prefill, decode in (("tp=1", "tp=1"), ("tp=2,pp=2,cp=2", "tp=1"), ("tp=2", "tp=4")):
        refuse_misfits(MODELS[model], 16, Groups(group_of(prefill), group_of(decode)))


@pytest.mark.parametrize("text", ["tp=two", "xp=2", "tp", "tp=0", "tp=2,tp=2", "", "tp=8,pp=16"])
def test_a_malformed_group_is_wrong_usage(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--prefill", text]) == 2
    reason = "makes 128 ranks, and the demo starts 64 at most" if "16" in text else "is not of the form"
    assert f"argument --prefill: {text!r} {reason}" in capsys.readouterr().err


def test_every_pair_of_replicas_serves_rooms_of_its_own() -> None:
    for dp in DPChoice:
        groups = Groups(group_of("dp=2,tp=2"), group_of("dp=3"), dp)
        met = [tuple(groups.dp_rank(role, RoomId(room)) for role in Role) for room in range(6)]
        assert len(set(met)) == 6


def test_a_replica_that_decode_asks_for_is_not_the_one_that_the_room_would_have() -> None:
    two = group_of("dp=2")
    by_room, asked = Groups(two), Groups(two, dp=DPChoice.QUERY)
    assert all(
        by_room.dp_rank(Role.PREFILL, RoomId(room)) != asked.dp_rank(Role.PREFILL, RoomId(room))
        for room in range(8)
    )


def test_groups_are_named_by_the_axes_that_have_several_ranks() -> None:
    groups = Groups(group_of("pp=2, tp=2"), group_of("tp=1"))
    assert str(groups) == "prefill 4 (tp=2,pp=2), decode 1 (tp=1)"
    assert [len(replica) for replica in Groups(group_of("dp=3,tp=2")).replicas(Role.PREFILL)] == [2, 2, 2]
