"""The chaos run, for a short time; `make chaos` runs it for as long as one likes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from pdcore.testing.chaos import ChaosReport


@pytest.mark.timeout(240)
@pytest.mark.parametrize("key", ["", "a key that all of them share"], ids=["open", "with a key"])
def test_killing_pausing_and_restarting_workers_loses_nothing_but_rooms(key: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pdcore.testing.chaos", "--seconds", "10", "--seed", "1", "--deadline", "4"],
        capture_output=True,
        text=True,
        timeout=220,
        env={**os.environ, "PDCORE_AUTH_KEY": key} if key else None,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
    for zero in ("wrong bytes", "hung rooms", "leaked pages", "leaked threads or sockets"):
        assert re.search(rf"^{zero} +0$", run.stdout, re.MULTILINE)
    assert re.search(r"^successes +[1-9]\d*, every byte", run.stdout, re.MULTILINE)
    assert re.search(r"^disturbances .*(kill|pause|restart)", run.stdout, re.MULTILINE)


def test_a_run_is_good_only_if_something_arrived_and_nothing_was_found() -> None:
    assert not ChaosReport("local").good
    assert ChaosReport("local", verified=1).good
    for what in ("wrong_bytes", "hung_rooms", "leaked_pages", "leaked_threads_and_sockets", "died"):
        report = ChaosReport("local", verified=1)
        getattr(report, what).append("room 5 on decode 1")
        assert not report.good
        assert "  room 5 on decode 1" in report.lines()
