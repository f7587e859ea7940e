"""The conformance suite on the embedded backend, as an author runs it in either way."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pdcore.testing import BackendConformance, Target


class TestLocal(BackendConformance):
    @pytest.fixture
    def target(self) -> Target:
        return Target("local")


def test_local_with_a_copy_thread_conforms() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pdcore", "conform", "local", "--option", "copy_threads=1"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "local conforms: " in done.stdout
