from __future__ import annotations

import json
from pathlib import Path

import pytest
from distributions import EVERY_DIST, folders, run_python

from pdcore.selection.discovery import Candidate, Problem, discover


def found(*dists: str, **environ: str) -> dict[str, Candidate]:
    return {c.project: c for c in discover(environ, folders(*dists)).backends}


def test_names_distributions_and_modules_come_from_metadata() -> None:
    discovery = discover({}, folders("good", "observer_raises"))
    assert discovery.names == ("good", "good_tcp", "good_undeclared")
    assert discovery.backends[1] == Candidate("good_tcp", "pd-good", "1.0.0", "pd_good")
    assert discovery.backends[1].distribution == "pd-good 1.0.0"
    assert [c.name for c in discovery.observers] == ["raises"]
    assert discovery.notes == ()


def test_discovery_imports_nothing() -> None:
    code = """
import json, sys
from pdcore.selection.discovery import discover
before = set(sys.modules)
names = discover().names
print(json.dumps([names, sorted(m for m in set(sys.modules) - before if m.startswith("pd"))]))
"""
    done = run_python("-c", code, path=folders(*EVERY_DIST))
    assert done.returncode == 0, done.stderr
    names, imported = json.loads(done.stdout)
    assert {"local", "good", "exits", "twin"} <= set(names)
    assert imported == []


def test_two_distributions_that_claim_one_name_are_both_refused_naming_both() -> None:
    candidates = found("twin_b", "twin_a", "good")
    clash = Problem(
        "the name is claimed by pd-twin-a 1.0.0 and by pd-twin-b 1.0.0",
        "pip uninstall pd-twin-a or pd-twin-b, or name one of them in PDCORE_DISABLE",
    )
    assert candidates["pd-twin-a"].problem == clash
    assert candidates["pd-twin-b"].problem == clash
    assert candidates["pd-good"].problem is None


def test_disabling_one_of_two_claimants_leaves_the_other_usable() -> None:
    candidates = found("twin_b", "twin_a", PDCORE_DISABLE="pd_twin_a")
    assert candidates["pd-twin-a"].problem is not None
    assert candidates["pd-twin-b"].problem is None


def test_requirements_that_are_not_met_are_all_named_and_markers_and_extras_respected() -> None:
    assert found("misfit")["pd-misfit"].problem == Problem(
        "needs pdcore>=9, but 0.1.0 is installed; needs pd-absent, which is not installed",
        "pip install 'pdcore>=9' 'pd-absent>=2'",
    )


def test_the_allow_list_takes_names_and_distributions() -> None:
    by_name = discover({"PDCORE_PLUGINS": "good_tcp"}, folders("good", "too_new"))
    assert [c.name for c in by_name.backends if c.problem is None] == ["good_tcp"]
    by_distribution = discover({"PDCORE_PLUGINS": " pd_good ,"}, folders("good", "too_new"))
    assert [c.name for c in by_distribution.backends if c.problem is None] == list(by_name.names[:3])
    assert found("too_new", PDCORE_PLUGINS="good")["pd-too-new"].problem == Problem(
        "not among PDCORE_PLUGINS=good", "add too_new to PDCORE_PLUGINS, or unset it"
    )


def test_an_empty_allow_list_allows_nothing() -> None:
    assert found("good", PDCORE_PLUGINS="")["pd-good"].problem is not None


def test_the_deny_list_wins() -> None:
    candidates = found("too_new", PDCORE_PLUGINS="too_new", PDCORE_DISABLE="too_new")
    assert candidates["pd-too-new"].problem == Problem(
        "switched off by PDCORE_DISABLE=too_new", "take it out of PDCORE_DISABLE"
    )


def test_listed_names_that_match_nothing_are_noted() -> None:
    environ = {"PDCORE_PLUGINS": "good,goood", "PDCORE_DISABLE": "bad"}
    assert discover(environ, folders("good")).notes == (
        "PDCORE_PLUGINS names 'goood', which is not installed",
        "PDCORE_DISABLE names 'bad', which is not installed",
    )


def write_distribution(folder: Path, metadata: str, module: str) -> None:
    info = folder / "pd_odd-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(metadata)
    (info / "entry_points.txt").write_text(f"[pdcore.backends]\nodd = {module}\n")


@pytest.mark.parametrize("metadata", ["", "Metadata-Version: 2.1\nName: pd-odd\n"])
def test_unreadable_metadata_is_a_note_and_hides_nobody(tmp_path: Path, metadata: str) -> None:
    write_distribution(tmp_path, metadata, "pd_odd")
    discovery = discover({}, [str(tmp_path), *folders("good")])
    assert "good" in discovery.names
    assert "odd" not in discovery.names
    assert len(discovery.notes) == 1
    assert discovery.notes[0].startswith(f"unreadable metadata in {tmp_path}")


def test_an_entry_point_that_is_no_module_is_refused(tmp_path: Path) -> None:
    write_distribution(tmp_path, "Metadata-Version: 2.1\nName: pd-odd\nVersion: 1.0\n", "pd_odd:plugin")
    assert discover({}, [str(tmp_path)]).backends[0].problem == Problem(
        "its entry point is 'pd_odd:plugin', which is not a module", "report it to the authors of pd-odd"
    )


def test_a_requirement_that_cannot_be_read_is_a_reason(tmp_path: Path) -> None:
    metadata = "Metadata-Version: 2.1\nName: pd-odd\nVersion: 1.0\nRequires-Dist: pdcore >> 1\n"
    write_distribution(tmp_path, metadata, "pd_odd")
    problem = discover({}, [str(tmp_path)]).backends[0].problem
    assert problem == Problem(
        "its requirement 'pdcore >> 1' cannot be read", "report it to the authors of pd-odd"
    )


def test_the_first_of_two_copies_of_a_distribution_hides_the_second(tmp_path: Path) -> None:
    metadata = "Metadata-Version: 2.1\nName: pd-odd\nVersion: {}\n"
    for version in ("1.0", "2.0"):
        write_distribution(tmp_path / version, metadata.format(version), "pd_odd")
    paths = [str(tmp_path / "2.0"), str(tmp_path / "1.0")]
    assert [(c.version, c.problem) for c in discover({}, paths).backends] == [("2.0", None)]
