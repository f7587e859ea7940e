"""Pages that must not be reused yet: transfers that ended for the room but whose bytes may still land."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pdcore.outcome import Quiescence, Transfer

__all__ = ["Quarantine"]


class Quarantine:
    """Holds transfers until the engine proves them drained. The lock guards ``_held``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[tuple[Transfer, Callable[[], None]]] = []

    def __len__(self) -> int:
        return len(self._held)

    def settle(self, transfer: Transfer, drained: Callable[[], None]) -> bool:
        """Call ``drained`` now if the transfer is, else hold it until ``sweep`` finds that it is.

        Returns whether it was called.
        """
        if transfer.quiescence is Quiescence.DRAINED:
            drained()
            return True
        with self._lock:
            self._held.append((transfer, drained))
        return False

    def sweep(self) -> None:
        """Look at every held transfer and let the drained ones go."""
        if not self._held:
            return
        with self._lock:
            held, self._held = self._held, []
        still = [entry for entry in held if not self._let_go(*entry)]
        with self._lock:
            self._held += still

    def release_all(self) -> None:
        """Let all go: the engine was closed, so that no byte can move any more."""
        with self._lock:
            held, self._held = self._held, []
        for _, drained in held:
            drained()

    @staticmethod
    def _let_go(transfer: Transfer, drained: Callable[[], None]) -> bool:
        transfer.poll()
        if transfer.quiescence is not Quiescence.DRAINED:
            return False
        drained()
        return True
