"""How many entries may be outstanding at one peer; shared by all threads that write to it."""

from __future__ import annotations

import threading

from pdcore.model import Deadline

__all__ = ["EntryBudget"]


class EntryBudget:
    """Keeps the entries outstanding at one peer within a limit (None: no limit).

    The lock guards ``_left``, which stays None where there is no limit. Nobody may take more at once than it.
    """

    def __init__(self, limit: int | None) -> None:
        self._left = limit
        self._given = threading.Condition()

    def take(self, entries: int) -> bool:
        """Take entries if there are enough; never blocks."""
        if self._left is None:
            return True
        with self._given:
            if self._left < entries:
                return False
            self._left -= entries
            return True

    def give(self, entries: int) -> None:
        """Give entries back once they are drained."""
        if self._left is None:
            return
        with self._given:
            self._left += entries
            self._given.notify_all()

    def wait(self, entries: int, deadline: Deadline) -> bool:
        """Wait until there are enough; return False at the deadline."""
        with self._given:
            return self._given.wait_for(
                lambda: self._left is None or self._left >= entries, deadline.remaining()
            )
