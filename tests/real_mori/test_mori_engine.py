"""The adapter on the real MORI-IO, over an emulated NIC."""

from __future__ import annotations

from pathlib import Path

import pytest
from mori_cases import MoriCases
from mori_engines import Start
from pair import until
from pd_mori.config import MoriOptions
from pd_mori.library import Library, load


def threads_and_files() -> tuple[int, int]:
    """How many native threads and open files this process has."""
    tasks, files = (Path(f"/proc/self/{name}") for name in ("task", "fd"))
    return len(list(tasks.iterdir())), len(list(files.iterdir()))


class TestMoriEngine(MoriCases):
    @pytest.fixture
    def library(self) -> Library:
        return load(MoriOptions())

    def test_engines_that_are_closed_leave_no_thread_and_no_socket(self, start: Start) -> None:
        here = start()
        before = threads_and_files()
        for _ in range(4):
            more = start()
            here.engine.disconnect(here.connect(more))
            more.engine.close()
        # A thread of the library's may end a moment after its engine; one that is left behind never does.
        until(lambda: all(now <= then for now, then in zip(threads_and_files(), before, strict=True)))
