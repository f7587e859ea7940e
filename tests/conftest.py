"""Every test leaves no thread of pdcore behind: of a peer that left, one may end a moment later."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "stand_ins"))  # last: an engine that is installed wins

MOMENT = 5.0


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    until = time.monotonic() + MOMENT
    new = [t for t in threading.enumerate() if t not in before and t.name.startswith("pdcore-")]
    for thread in new:
        thread.join(max(0.0, until - time.monotonic()))
    left = [t.name for t in new if t.is_alive()]
    assert not left, f"threads were left behind: {left}"
