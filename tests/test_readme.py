"""The README's programs run as they stand, and keep the length that they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()
PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PROGRAM, BACKEND = PYTHON_BLOCKS


def run(code: str, path: Path | None = None) -> str:
    env = {**os.environ, "PYTHONPATH": str(path or "")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, env=env, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def install_example(site: Path) -> None:
    """Lay the README's backend out as pip would."""
    (site / "pd_example").mkdir()
    (site / "pd_example" / "__init__.py").touch()
    (site / "pd_example" / "plugin.py").write_text(BACKEND)
    info = site / "pd_example-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pd-example\nVersion: 1.0.0\n")
    entry = re.search(r'```toml\n\[project\.entry-points\."(.+)"\]\n(.+)\n```', README)
    assert entry is not None
    group, line = entry.groups()
    (info / "entry_points.txt").write_text(f"[{group}]\n{line.replace(chr(34), '')}\n")


def test_the_program_moves_a_request() -> None:
    assert len(PROGRAM.splitlines()) < 42
    assert len([line for line in PROGRAM.splitlines() if line.strip()]) < 40
    out = run(PROGRAM)
    assert out.startswith("1234 RequestMetrics(room=7, status=<KVPoll.SUCCESS: 4>, pages=3,")


def test_the_backend_carries_the_program(tmp_path: Path) -> None:
    assert len(BACKEND.splitlines()) < 60
    install_example(tmp_path)
    program = PROGRAM.replace('pdcore.select("local")', 'pdcore.select("example")')
    assert program != PROGRAM
    assert run(program, tmp_path).startswith("1234 RequestMetrics(room=7, status=<KVPoll.SUCCESS: 4>")
