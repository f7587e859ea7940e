"""Pages that must not be reused yet: transfers that ended for the room but whose bytes may still land."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from pdcore.outcome import Quiescence, Transfer

__all__ = ["Quarantine"]

_Entry = tuple[Transfer, Callable[[], None]]


class Quarantine:
    """Holds transfers until the engine proves them drained. The lock guards ``_held`` and ``_closed``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[_Entry] = []
        self._closed = False

    def __len__(self) -> int:
        return len(self._held)

    def settle(self, transfer: Transfer, drained: Callable[[], None]) -> bool:
        """Call ``drained`` now if the transfer is, else hold it until ``sweep`` finds that it is.

        Returns whether it was called.
        """
        if transfer.quiescence is not Quiescence.DRAINED:
            with self._lock:
                if not self._closed:
                    self._held.append((transfer, drained))
                    return False
        drained()
        return True

    def sweep(self) -> None:
        """Look at every held transfer and let the drained ones go."""
        with self._lock:
            held = tuple(self._held)
        self._release(entry for entry in held if _is_drained(entry[0]))

    def release_all(self) -> None:
        """Let all go, now and later: the engine was closed, so that no byte can move any more."""
        with self._lock:
            self._closed = True
            held = tuple(self._held)
        self._release(held)

    def _release(self, entries: Iterable[_Entry]) -> None:
        for entry in entries:
            with self._lock:
                if entry not in self._held:  # another thread was first
                    continue
                self._held.remove(entry)
            entry[1]()


def _is_drained(transfer: Transfer) -> bool:
    transfer.poll()
    return transfer.quiescence is Quiescence.DRAINED
