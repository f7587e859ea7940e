"""The wheels of all distributions, installed into a clean environment outside the repository."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [ROOT, *sorted((ROOT / "plugins").iterdir()), *sorted((ROOT / "adapters").iterdir())]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("wheels")
    pip = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", out, *SOURCES, cwd=out)
    return sorted(out.glob("*.whl"))


def test_every_distribution_builds_a_typed_wheel(wheels: list[Path]) -> None:
    assert [w.name.split("-")[0] for w in wheels] == [
        "pd_mooncake",
        "pd_mori",
        "pd_nixl",
        "pdcore",
        "pdcore_sglang",
        "pdcore_vllm",
    ]
    for wheel in wheels:
        names = zipfile.ZipFile(wheel).namelist()
        assert f"{wheel.name.split('-')[0]}/py.typed" in names
        assert not [name for name in names if name.startswith("tests/")]


@pytest.mark.timeout(300)
def test_they_work_in_a_clean_environment(wheels: list[Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "--quiet", "install", *wheels, "pytest", cwd=tmp_path)
    pdcore = tmp_path / "venv" / "bin" / "pdcore"
    where = run(python, "-c", "import pdcore; print(pdcore.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(tmp_path)
    report = json.loads(run(pdcore, "demo", "--requests", "5", "--json", cwd=tmp_path))
    assert [r["digest"] for r in report["requests"]] == [r["expected_digest"] for r in report["requests"]]
    assert len(report["requests"]) == 5
    listed = json.loads(run(pdcore, "backends", "--json", cwd=tmp_path))
    assert {"local", "mooncake", "nixl", "mori"} <= {b["name"] for b in listed["backends"]}
    outcome = json.loads(run(pdcore, "conform", "local", "-k", "contract", "--json", cwd=tmp_path))
    assert outcome["failed"] == 0
    assert outcome["passed"] > 0
