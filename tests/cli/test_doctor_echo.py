from __future__ import annotations

import importlib
import json
from subprocess import CompletedProcess
from types import ModuleType

import pytest
from distributions import folders, install, run_python

from pdcore.cli.echo import Echo, loopback_echo
from pdcore.config.records import Config
from pdcore.errors import EngineError, KVTransferError, TransportMismatchError
from pdcore.model import Certainty, Deadline
from pdcore.selection.select import select


def doctor(*arguments: str, **environ: str) -> CompletedProcess[str]:
    return run_python("-m", "pdcore", "doctor", *arguments, path=folders("good", "scripted"), environ=environ)


def echo(name: str, config: Config | None = None, seconds: float = 30.0, nbytes: int = 5000) -> Echo:
    return loopback_echo(select(name), config or Config(), Deadline.after(seconds), nbytes)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    install(monkeypatch, "scripted")
    module = importlib.import_module("pd_scripted")
    module.script.reset()
    return module


def test_every_byte_comes_back() -> None:
    result = echo("local", nbytes=3 * 2**20 + 1)
    assert result.nbytes == 3 * 2**20 + 1
    assert result.seconds > 0
    assert result.gigabytes_per_second == pytest.approx(result.nbytes / result.seconds / 1e9)
    assert result.transport.certainty is Certainty.VERIFIED


def test_what_an_engine_takes_at_once_is_respected(scripted: ModuleType) -> None:
    echo("scripted")
    assert scripted.script.most_outstanding == 10
    assert scripted.script.longest_entry == 300


def test_an_engine_that_moves_nothing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "good")
    with pytest.raises(
        EngineError, match=r"brought other bytes than were sent\n.*of 5000 bytes differ, the first"
    ):
        echo("good_tcp")


def test_a_failed_write_is_the_engines_own_error(scripted: ModuleType) -> None:
    scripted.script.fail = True
    with pytest.raises(KVTransferError, match="the script failed it"):
        echo("scripted")


def test_a_write_that_does_not_end_is_given_up(scripted: ModuleType) -> None:
    scripted.script.hold = True
    with pytest.raises(EngineError, match=r"did not end before its deadline\n.*3000 bytes in 10 entries"):
        echo("scripted", seconds=0.2)


def test_an_engine_that_raises_is_named_with_the_step(scripted: ModuleType) -> None:
    scripted.script.explode = True
    with pytest.raises(
        EngineError, match=r"RuntimeError: the script has it raise, while writing, round 1 of 3"
    ):
        echo("scripted")


def test_an_engine_that_cannot_prove_its_end_fails_the_echo(scripted: ModuleType) -> None:
    scripted.script.refuse_to_close = True
    with pytest.raises(EngineError, match="close cannot prove"):
        echo("scripted")


def test_the_transport_that_is_required_is_checked() -> None:
    with pytest.raises(TransportMismatchError, match="'process_vm_writev', verified"):
        echo("local", Config(require_transport="rdma"))


def test_doctor_prints_transport_and_bandwidth() -> None:
    done = doctor("local", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["backends"]
    assert (found["transport"]["name"], found["transport"]["certainty"]) == ("process_vm_writev", "verified")
    assert found["transport"]["how"]
    assert (found["echo"]["good"], found["echo"]["bytes"]) == (True, 67_108_864)
    assert found["echo"]["gigabytes_per_second"] > 0


def test_no_echo_starts_no_engine() -> None:
    done = doctor("local", "--no-echo", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["backends"]
    assert "echo" not in found
    assert {"drained_on_failure", "revocable", "silent_after_close", "aux"} <= set(found["promises"])


def test_without_a_name_no_engine_is_started() -> None:
    done = doctor("--json")
    assert done.returncode == 0, done.stderr
    assert not [row for row in json.loads(done.stdout)["backends"] if "echo" in row]


def test_a_failed_echo_is_exit_1_with_the_reason() -> None:
    done = doctor("good_tcp", "--json")
    assert done.returncode == 1, done.stderr
    (found,) = json.loads(done.stdout)["backends"]
    assert (found["ready"], found["verdict"]) == (False, "the loopback echo failed")
    assert not found["echo"]["good"]
    assert "brought other bytes than were sent: " in found["echo"]["reason"]
    assert found["fix"] == "do not use this backend here: it says that all was written"


def test_an_engine_that_does_not_start_is_exit_1_with_the_reason() -> None:
    done = doctor("good", PDCORE_GOOD_START="never")
    assert done.returncode == 1, done.stderr
    assert "good: the loopback echo failed\n" in done.stdout
    assert "the good engine cannot start: it was told so" in done.stdout


def test_the_real_engine_over_tcp_echoes_and_tells_what_is_installed() -> None:
    done = doctor("mooncake_tcp", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(done.stdout)["backends"]
    transport = found["transport"]
    assert (transport["name"], transport["certainty"]) == ("tcp", "verified")
    assert transport["how"].startswith("the engine announces it")
    assert found["echo"]["good"]
    assert found["facts"]["wheel"].startswith("mooncake-transfer-engine")
    assert found["facts"]["missing libraries"] == "none"
