"""The fixture distributions under tests/dists, put on the path of this process or of a new one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

DISTS = Path(__file__).parent / "dists"
EVERY_DIST = tuple(sorted(folder.name for folder in DISTS.iterdir()))


def folders(*names: str) -> list[str]:
    return [str(DISTS / name) for name in names]


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for folder in folders(*names):
        monkeypatch.syspath_prepend(folder)


def run_python(
    *arguments: str, path: list[str], environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PDCORE_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env=inherited | {"PYTHONPATH": os.pathsep.join(path)} | (environ or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
