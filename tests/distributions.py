"""The fixture distributions under tests/dists, put on the path of this process or of a new one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DISTS = Path(__file__).parent / "dists"
EVERY_DIST = tuple(sorted(folder.name for folder in DISTS.iterdir()))


def folders(*names: str) -> list[str]:
    return [str(DISTS / name) for name in names]


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for folder in folders(*names):
        monkeypatch.syspath_prepend(folder)


def run_python(
    *arguments: str, path: list[str], environ: dict[str, str] | None = None, seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PDCORE_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env=inherited | {"PYTHONPATH": os.pathsep.join(path)} | (environ or {}),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


THIRD_PARTY = Path(__file__).parent / "third_party"


def described(project: Path, into: Path) -> list[str]:
    """What to put on the path to have a project's packages and entry points without installing it."""
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    folder = into / f"{declared['name'].replace('-', '_')}-{declared['version']}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {declared['name']}\nVersion: {declared['version']}\n"
    )
    groups = declared["entry-points"].items()
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()) for group, entries in groups
    ]
    (folder / "entry_points.txt").write_text("".join(lines))
    return [str(project), str(into)]
