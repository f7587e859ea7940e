"""The conformance suite on the embedded backend with a copy thread, as an author runs it from a shell."""

from __future__ import annotations

import subprocess
import sys


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
