"""What a child prints on its standard error: passed on to this process's, and the end of it kept."""

from __future__ import annotations

import contextlib
import os
import select
import threading

__all__ = ["Printed", "write_all"]

READ_BYTES = 65536
KEPT_BYTES = 4096
LINES = 5
STDERR = 2


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, however little the system takes at a time."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


class Printed:
    """Reads one pipe in a thread of its own, so that a child that prints never waits for a busy parent.

    The thread alone writes ``_kept``. It ends with the pipe, or with :meth:`close`.
    """

    def __init__(self, pipe: int, pid: int) -> None:
        self._pipe, self._closing = pipe, os.eventfd(0)
        self._kept = b""
        self._thread = threading.Thread(target=self._pass_on, name=f"pdcore-child-{pid}", daemon=True)
        self._thread.start()

    def last(self, seconds: float) -> str:
        """Return the last lines, waiting so long for the end of what a child has printed that has ended."""
        self._thread.join(seconds)
        lines = self._kept.decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-LINES:])

    def close(self) -> None:
        """Pass on what is there yet, and end the thread."""
        os.eventfd_write(self._closing, 1)
        self._thread.join()
        os.close(self._closing)

    def _pass_on(self) -> None:
        ready = select.poll()
        for fd in (self._pipe, self._closing):
            ready.register(fd, select.POLLIN)
        while self._pipe in {fd for fd, _ in ready.poll()}:
            data = os.read(self._pipe, READ_BYTES)
            if not data:
                return
            self._kept = (self._kept + data)[-KEPT_BYTES:]
            with contextlib.suppress(OSError):  # nobody wants to see it
                write_all(STDERR, data)
