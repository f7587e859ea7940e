"""``make test-engines`` says why MORI-IO was not tested, and what to install."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NO_PYTHON = "no Python 3.10 was found. Install one (apt-get install python3.10-venv, or pyenv install 3.10)"


def make(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run make as a user would, not as a part of the make that may have started this test."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environ.pop("ARGS", None)
    if path is not None:
        environ["PATH"] = f"{path}{os.pathsep}{environ['PATH']}"
    return subprocess.run(
        ["make", "-C", str(ROOT), *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_without_a_python_3_10_the_other_engines_are_tested_and_it_says_what_was_not() -> None:
    done = make("--dry-run", "test-engines", "PY310=")
    assert done.returncode == 0, done.stderr
    assert f"make test-mori not run: {NO_PYTHON}" in done.stdout
    assert "-m pytest" in done.stdout.splitlines()[-2]


def test_without_a_python_3_10_the_suite_of_mori_cannot_be_asked_for(tmp_path: Path) -> None:
    done = make("test-mori", "PY310=", f"MORI={tmp_path / 'none'}")
    assert done.returncode != 0
    assert NO_PYTHON in done.stderr


@pytest.fixture
def without_network(tmp_path: Path) -> Path:
    """A folder of programs whose apt-get fails."""
    apt = tmp_path / "programs" / "apt-get"
    apt.parent.mkdir()
    apt.write_text("#!/bin/sh\necho 'no network' >&2\nexit 100\n")
    apt.chmod(0o755)
    return apt.parent


def test_a_missing_system_library_is_a_command_to_run(tmp_path: Path, without_network: Path) -> None:
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)
    asked = (f"{environment}/.libraries", f"MORI={environment}", "MORI_SONAMES=libmissing.so.1")
    done = make(*asked, path=without_network)
    assert done.returncode != 0
    assert "as root: apt-get install libpci3 libnuma1 libdrm2 libdrm-amdgpu1 " in done.stdout
    assert not (environment / ".libraries").exists()
