"""The backend of somebody else is found by its name; make test-engines has it conform."""

from __future__ import annotations

from pathlib import Path

from distributions import THIRD_PARTY, described, run_python


def test_parcel_is_found_and_moves_bytes_between_processes(tmp_path: Path) -> None:
    path = described(THIRD_PARTY, tmp_path)
    done = run_python("-m", "pdcore", "conform", "parcel", "-k", "test_pages_and_aux_arrive", path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "parcel: 1 of " in done.stdout
