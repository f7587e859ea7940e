"""The backend of somebody else keeps the whole contract: what the engines' tests serve with is no toy."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributions import THIRD_PARTY, described, run_python


@pytest.mark.timeout(400)
def test_parcel_conforms(tmp_path: Path) -> None:
    path = described(THIRD_PARTY, tmp_path)
    done = run_python("-m", "pdcore", "conform", "parcel", path=path, seconds=380)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "parcel conforms: " in done.stdout
