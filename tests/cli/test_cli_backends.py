from __future__ import annotations

import json
from subprocess import CompletedProcess

from distributions import EVERY_DIST, folders, run_python


def pdcore(*arguments: str, **environ: str) -> CompletedProcess[str]:
    return run_python("-m", "pdcore", *arguments, path=folders(*EVERY_DIST), environ=environ)


def test_backends_lists_every_name_with_its_verdict() -> None:
    done = pdcore("backends")
    assert done.returncode == 0, done.stderr
    lines = {" ".join(line.split()) for line in done.stdout.splitlines()}
    assert "NAME DISTRIBUTION PROTOCOLS RUNS ON VERDICT" in lines
    assert "good_tcp pd-good 1.0.0 tcp anything ready" in lines
    assert "no_library pd-no-library 1.0.0 memory anything libfixture.so.1 is missing" in lines
    assert "exits pd-exits 1.0.0 - - pd_exits cannot be imported: SystemExit: 3" in lines
    assert any(line.startswith("local pdcore 0.1.0 ") for line in lines)


def test_backends_as_data_carries_the_same() -> None:
    done = pdcore("backends", "--json", PDCORE_DISABLE="nobody")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {row["name"]: row for row in report["backends"]}
    assert rows["good"] == {
        "name": "good",
        "distribution": "pd-good 1.0.0",
        "module": "pd_good",
        "summary": "a fixture",
        "protocols": ["rdma", "tcp"],
        "runs_on": "anything",
        "ready": True,
        "reason": None,
        "fix": None,
    }
    assert rows["too_old"]["fix"] == "pip install --upgrade pd-too-old"
    assert report["notes"] == ["PDCORE_DISABLE names 'nobody', which is not installed"]


def test_backends_imports_no_other_subcommand() -> None:
    code = """
import sys
from pdcore.cli import main
assert main(["backends"]) == 0
print([name for name in ("demo", "conform", "bench", "doctor") if f"pdcore.cli.{name}" in sys.modules])
"""
    done = run_python("-c", code, path=[])
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_doctor_says_everything_about_a_backend_that_is_ready() -> None:
    done = pdcore("doctor", "good_tcp", "--no-echo", "--json", PDCORE_GOOD_AUX="engine")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (found,) = report["backends"]
    options = {option.pop("name"): option for option in found.pop("options")}
    assert found == {
        "name": "good_tcp",
        "ready": True,
        "verdict": "ready",
        "fix": None,
        "distribution": "pd-good 1.0.0",
        "module": "pd_good",
        "summary": "a fixture",
        "runs_on": "anything",
        "contract": 1,
        "engine": None,
        "variant_of": "good",
        "environment": {"GOOD_FORCE_TCP": "1", "GOOD_DEVICE": None},
        "probe": {"ready": True, "reason": None},
        "protocols": [{"protocol": "tcp", "usable": True, "reason": "good_tcp is this protocol"}],
        "facts": {},
        "promises": [],
    }
    assert options["threads"] == {"value": 4, "default": 1, "required": False, "origin": "variant good_tcp"}
    assert options["without_rdma"] == {"value": False, "default": False, "required": False, "origin": None}
    assert options["aux"] == {
        "value": "engine",
        "default": "tcp",
        "required": False,
        "origin": "PDCORE_GOOD_AUX",
    }
    assert options.keys() == {"threads", "device", "without_rdma", "aux", "certainty", "start"}
    observers = {observer.pop("name"): observer for observer in report["observers"]}
    assert observers["counts"] == {
        "distribution": "pd-observer-counts 1.0.0",
        "ready": True,
        "reason": None,
        "fix": None,
    }
    assert not observers["broken"]["ready"]
    assert (
        observers["broken"]["reason"] == "pd_observer_broken cannot be imported: RuntimeError: no such thing"
    )
    assert {"pdcore", "contract", "python", "platform"} <= set(report)


def test_doctor_says_the_same_in_prose() -> None:
    done = pdcore("doctor", "good_tcp", "--no-echo", PDCORE_GOOD_AUX="engine")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "good_tcp: ready"
    for line in (
        "runs on anything",
        "variant of good",
        "environment GOOD_FORCE_TCP=1",
        "GOOD_DEVICE=(cleared)",
        "probe ready",
        "protocols tcp: usable, good_tcp is this protocol",
        "options threads=4 (default 1, set by variant good_tcp)",
        "device='' (default '')",
        "aux=engine (default tcp, set by PDCORE_GOOD_AUX)",
        "counts (pd-observer-counts 1.0.0): ready",
    ):
        assert line in lines


def test_doctor_exits_1_for_a_named_backend_that_is_not_ready_and_says_the_fix() -> None:
    done = pdcore("doctor", "no_library")
    assert done.returncode == 1
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "no_library: libfixture.so.1 is missing"
    assert "fix apt-get install libfixture1" in lines
    assert "probe libfixture.so.1 is missing" in lines


def test_doctor_without_a_name_looks_at_all_of_them_and_exits_0() -> None:
    done = pdcore("doctor")
    assert done.returncode == 0, done.stderr
    assert "\nlocal: " in done.stdout
    assert "\nexits: pd_exits cannot be imported: SystemExit: 3\n" in done.stdout


def test_an_unknown_backend_is_a_clean_error() -> None:
    done = pdcore("doctor", "goood")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "SelectionError: no backend is named 'goood'\n" in done.stderr
    assert "  fix: did you mean 'good'?        more: pdcore backends\n" in done.stderr
    assert "Traceback" not in done.stderr.split("SelectionError")[1]


def test_a_wrong_configuration_is_a_clean_error() -> None:
    done = pdcore("doctor", "good", PDCORE_HOSTT="x")
    assert done.returncode == 1
    assert "PDCORE_HOSTT (from environment): is unknown; did you mean 'PDCORE_HOST'?" in done.stderr


def test_the_version_is_printed() -> None:
    done = run_python("-m", "pdcore", "--version", path=[])
    assert (done.returncode, done.stdout) == (0, "pdcore 0.1.0\n")
