"""A lane: one thread that does the blocking work towards one peer, so that a slow one delays no other."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from pdcore.host.fork import Birthplace
from pdcore.model import Deadline

__all__ = ["Lane"]

_log = logging.getLogger("pdcore.transfer")


class Lane:
    """Runs jobs in order on the thread ``pdcore-lane-<name>``, which ends at ``close``."""

    def __init__(self, name: str) -> None:
        self._birthplace = Birthplace(self)
        self._lock = threading.Lock()  # guards _closed, so that no job follows the end
        self._closed = False
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"pdcore-lane-{name}", daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None]) -> bool:
        """Run a job after those put before; never blocks. Returns False if the lane is closed."""
        self._birthplace.require("a lane")
        with self._lock:
            if not self._closed:
                self._jobs.put(job)
            return not self._closed

    def close(self) -> None:
        """Let the lane end after the jobs that were put; idempotent. Nothing in a forked child."""
        if self._birthplace.left:
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)

    @property
    def ended(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def join(self, deadline: Deadline) -> bool:
        """Wait for the end; return whether it came before the deadline."""
        self._thread.join(deadline.remaining())
        return self.ended

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            # A job reports its own failures; what escapes is a defect, and the lane must serve on.
            except Exception:
                _log.exception("a job on %s failed", self._thread.name)
