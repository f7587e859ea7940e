"""After a prefill rank was lost: has the engine prove that it writes no more."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from pdcore.backend import PeerIdentity
from pdcore.engine import TransferEngine
from pdcore.model import Deadline, Incarnation
from pdcore.outcome import Quiescence

__all__ = ["Revocations"]

STEP = 1.0
"""Seconds after which a revocation that is not through looks whether it shall stop."""

_log = logging.getLogger("pdcore.decode")


class Revocations:
    """One thread ``pdcore-revoke-...`` per lost prefill rank, until it is drained.

    The lock guards ``_running``.
    """

    def __init__(self, engine: TransferEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._running: dict[Incarnation, threading.Thread] = {}
        self._stopping = threading.Event()

    def start(self, writer: PeerIdentity, endpoint: bytes, drained: Callable[[], None]) -> None:
        """Revoke a writer off this thread, since it may have to wait; call ``drained`` once proven."""
        thread = threading.Thread(
            target=self._revoke,
            args=(writer, endpoint, drained),
            name=f"pdcore-revoke-{writer.incarnation[:8]}",
            daemon=True,
        )
        with self._lock:
            self._running = {w: t for w, t in self._running.items() if t.is_alive()}
            self._running[writer.incarnation] = thread
            thread.start()

    def finish(self, writer: Incarnation, deadline: Deadline) -> bool:
        """Wait for the end of a writer's revocation, if there is one; False at the deadline."""
        with self._lock:
            thread = self._running.get(writer)
        if thread is None:
            return True
        thread.join(deadline.remaining())
        return not thread.is_alive()

    def close(self, deadline: Deadline) -> None:
        """End all threads."""
        self._stopping.set()
        with self._lock:
            running = list(self._running.values())
        for thread in running:
            thread.join(deadline.remaining())

    def _revoke(self, writer: PeerIdentity, endpoint: bytes, drained: Callable[[], None]) -> None:
        quiescence = Quiescence.IN_FLIGHT
        try:
            while quiescence is Quiescence.IN_FLIGHT and not self._stopping.is_set():
                quiescence = self._engine.revoke(endpoint, Deadline.after(STEP))
        # An adapter may raise anything; it proves nothing then.
        except Exception:
            _log.exception("the engine raised while revoking %s", writer)
        if quiescence is Quiescence.DRAINED:
            drained()
        elif not self._stopping.is_set():
            _log.warning(
                "lost %s may still write: pages that it was to fill are unsafe until it pairs again and says "
                "that it has drained, or until this engine closes",
                writer,
            )
