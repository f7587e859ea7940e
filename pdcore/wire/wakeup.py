"""What ends the sleep of a thread that polls descriptors."""

from __future__ import annotations

import os
import threading

__all__ = ["Wakeup"]


class Wakeup:
    """An eventfd that one thread polls. The lock keeps a closed, reused descriptor from being written to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def rouse(self) -> None:
        """End the sleep, or the next one; from any thread, also once it is closed."""
        with self._lock:
            if self.descriptor >= 0:
                os.eventfd_write(self.descriptor, 1)

    def heard(self) -> None:
        """Let the next poll sleep again, after one that found the descriptor readable."""
        os.eventfd_read(self.descriptor)

    def close(self) -> None:
        """Give the descriptor back; idempotent."""
        with self._lock:
            if self.descriptor >= 0:
                os.close(self.descriptor)
                self.descriptor = -1
