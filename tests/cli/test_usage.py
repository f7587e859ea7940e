"""How the command line answers what it cannot take: what there is, what was meant, also as data."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Iterator

import pytest

from pdcore.cli import COMMANDS, main

POPEN = subprocess.Popen


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process starts, the environment sets nothing, and logging stays as it is."""
    monkeypatch.setattr(subprocess, "Popen", None)
    before = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = before


WRONG = {
    # what is called: the first clause, what there is (a part of it), and what to do
    "backens": ("there is no command 'backens'", "backends, doctor, demo", "did you mean 'backends'?"),
    "nothing-like-it": ("there is no command 'nothing-like-it'", "bench", "see pdcore --help"),
    "backends --jsn": ("there is no argument '--jsn'", "--json", "did you mean '--json'?"),
    "backends local": ("there is no argument 'local'", "--json", "see pdcore backends --help"),
    "--nope backends": ("there is no argument '--nope'", "--version", "see pdcore --help"),
    "demo --modle gpt2": ("there is no argument '--modle'", "--model", "did you mean '--model'?"),
    "demo --modle=gpt2": ("there is no argument '--modle=gpt2'", "--model", "did you mean '--model'?"),
    "demo --model gpt-2": ("there is no --model 'gpt-2'", "gemma-2b, gemma-3-4b", "did you mean 'gpt2'?"),
    "demo --aux both": ("there is no --aux 'both'", "auto, engine, tcp", "see pdcore demo --help"),
    "demo --transfer-model worker": ("there is no --transfer-model", "inline", "did you mean 'workers'?"),
    "demo --seed x": ("argument --seed: 'x' is not a whole number", "", "see pdcore demo --help"),
    "demo --seed -1": ("argument --seed: -1 does not lie in 0 to ", "", "see pdcore demo --help"),
    "demo --requests 1e9": ("argument --requests: '1e9' is not a whole number", "", "see"),
    "demo --requests 9999999": ("argument --requests: 9999999 does not lie in 1 to 1,000,000", "", "see"),
    "demo --concurrency 100000": ("argument --concurrency: 100000 does not lie in 1 to 4,096", "", "see"),
    "demo --memory inf": ("argument --memory: inf does not lie in 0.001 to 1e+06", "", "see"),
    "demo --memory lots": ("argument --memory: 'lots' is not a number", "", "see"),
    "demo --deadline nan": ("argument --deadline: nan does not lie in 0.001 to 604800", "", "see"),
    "demo --prefix 2": ("argument --prefix: 2 does not lie in 0 to 1", "", "see"),
    "demo --prefill tp=0": ("argument --prefill: 'tp=0' is not of the form tp=N,pp=N,cp=N,dp=N", "", "see"),
    "demo --option x": ("argument --option: 'x' is not of the form KEY=VALUE", "", "see"),
    "bench --mib 0": ("argument --mib: 0 does not lie in 1 to", "", "see pdcore bench --help"),
    "conform": ("the following arguments are required: NAME", "", "see pdcore conform --help"),
    "doctor a b": ("there is no argument 'b'", "--no-echo", "see pdcore doctor --help"),
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_usage_says_what_there_is_as_text_and_as_data(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    happened, there_is, to_do = WRONG[line]
    assert main(line.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("usage: pdcore")
    for part in (happened, there_is, f"  to do: {to_do}"):
        assert part in told.err
    assert main([*line.split(), "--json"]) == 2
    told = capsys.readouterr()
    error = json.loads(told.out)["error"]
    assert told.err == ""
    assert error["type"] == "UsageError"
    assert error["happened"].startswith(happened)
    assert there_is in error["there_is"]
    assert error["to_do"].startswith(to_do)


def test_no_command_shows_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert all(f"\n    {command} " in told.err for command in COMMANDS)
    assert main(["--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["happened"] == "no command was given"


REFUSED = {
    "demo --backend locl": ("SelectionError", "no backend is named 'locl'", "did you mean 'local'?"),
    "conform locl": ("SelectionError", "no backend is named 'locl'", "did you mean 'local'?"),
    "demo --option copy_thread=1": (
        "ConfigError",
        "the configuration has 1 wrong value",
        "correct each value",
    ),
    "demo --prefill tp=3": (
        "IncompatiblePeerError",
        "cannot pair with the decode group",
        "use the same tp_size",
    ),
    "demo --model jamba-v0.1 --decode pp=16": ("ShapeError", "pipeline stage 0", "use a smaller pp_size"),
    "demo --trace /nowhere": ("WorkloadError", "the trace /nowhere cannot be read", "name a readable file"),
    "demo --page-size 65536 --model llama-3-70b": (
        "WorkloadError",
        "the pools are too small",
        "use --memory",
    ),
    "bench --mib 1 --page-size 9": ("BenchError", "a page of 9 tokens is larger", "use a larger --mib"),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_work_is_refused_as_text_and_as_data(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, happened, to_do = REFUSED[line]
    assert main(line.split()) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"{kind}: {happened}")
    assert to_do in told.err
    assert main([*line.split(), "--json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == kind
    assert error["happened"].startswith(happened)
    assert error["to_do"].startswith(to_do)
    assert kind != "SelectionError" or "local" in {row["name"] for row in error["candidates"]}


def test_json_may_stand_before_the_command_and_goes_for_the_version(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--json", "backends"]) == 0
    assert "backends" in json.loads(capsys.readouterr().out)
    assert main(["--version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"pdcore"}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_terminal_of_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command.split(), "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: pdcore")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("PDCORE_BACKEND", "locl", "did you mean 'local'?"),
        ("PDCORE_HOSTT", "x", "PDCORE_HOSTT (from environment): is unknown; did you mean 'PDCORE_HOST'?"),
        (
            "PDCORE_TIMEOUTS_REQUEST",
            "soon",
            "(from PDCORE_TIMEOUTS_REQUEST): must be a number",
        ),
        ("PDCORE_TRANSFER_MODEL", "worker", "transfer.model (from PDCORE_TRANSFER_MODEL): "),
        ("PDCORE_CONFIG", "/nowhere.toml", "/nowhere.toml (from PDCORE_CONFIG): cannot be read"),
        ("PDCORE_AUTH_KEY", "short", "auth_key (from PDCORE_AUTH_KEY): must have at least 16 bytes"),
        ("PDCORE_PLUGINS", "nothing", "backend 'local' is installed but cannot run here"),
    ],
)
def test_a_variable_that_is_wrong_is_named(
    variable: str,
    value: str,
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, value)
    assert main(["demo"]) == 1
    assert told in capsys.readouterr().err


SERVICE = {
    "PDCORE_PREFILL_SERVICE_HOST": "10.0.0.7",
    "PDCORE_PREFILL_SERVICE_PORT": "8998",
    "PDCORE_PREFILL_PORT": "tcp://10.0.0.7:8998",
    "PDCORE_PREFILL_PORT_8998_TCP": "tcp://10.0.0.7:8998",
    "PDCORE_CONTROL_PORT": "tcp://10.0.0.8:8998",
}


@pytest.mark.parametrize("as_data", [False, True])
def test_a_service_of_kubernetes_disturbs_no_command_and_is_said_once_on_stderr(
    as_data: bool,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subprocess, "Popen", POPEN)
    monkeypatch.setattr("pdcore.config.service_links._said", set())
    for variable, value in SERVICE.items():
        monkeypatch.setenv(variable, value)
    for _ in range(2):
        assert main(["doctor", "local", "--no-echo", *["--json"] * as_data]) == 0
        out = capsys.readouterr().out
        assert json.loads(out)["backends"][0]["ready"] if as_data else out.startswith("local: ready")
    (said,) = [
        record.getMessage() for record in caplog.records if "PDCORE_PREFILL_PORT" in record.getMessage()
    ]
    assert "PDCORE_CONTROL_PORT" in said
