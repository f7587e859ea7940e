"""A thread that writes the same batch again and again, so that something is always under way."""

from __future__ import annotations

import threading

import numpy as np

from pdcore.contract.engine import Peer, TransferEngine
from pdcore.contract.outcome import Transfer, TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.errors import PDCoreError
from pdcore.model import Deadline

__all__ = ["Pump"]

STEP = 30.0
"""Seconds that one write may take."""


class Pump:
    """Writes all of local region 0 to remote region 0 until it is stopped or a write fails.

    ``writes`` are done; ``error`` ended the one after; ``last`` is the transfer made last.
    """

    def __init__(self, engine: TransferEngine, peer: Peer) -> None:
        self._engine = engine
        self._peer = peer
        length = min(int(engine.region_lengths[0]), int(peer.region_lengths[0]))
        piece = min(length, engine.capabilities.max_entry_bytes or length, 1 << 20)
        offsets = np.arange(0, length - piece + 1, piece)
        self._batch = WriteBatch.of(0, 0, offsets, offsets, np.full(len(offsets), piece))
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self.writes = 0
        self.error: Exception | None = None
        self.last: Transfer | None = None
        self._thread = threading.Thread(target=self._run, name="pdcore-testing-pump", daemon=True)
        self._thread.start()

    def wait_started(self, deadline: Deadline) -> bool:
        """Wait until one write is done; False if a write failed or the deadline came first."""
        with self._progress:
            self._progress.wait_for(lambda: self.writes or self.error, deadline.remaining())
            return self.writes > 0

    def wait_failed(self, deadline: Deadline) -> Exception | None:
        """Wait until a write fails; return its error, None if the deadline came first."""
        with self._progress:
            self._progress.wait_for(lambda: self.error, deadline.remaining())
            return self.error

    def stop(self, deadline: Deadline) -> bool:
        """Stop, and wait for the last write; False if the deadline came first."""
        self._stop.set()
        self._thread.join(deadline.remaining())
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stop.is_set():
            error = self._write()
            with self._progress:
                self.writes += error is None
                self.error = error
                self._progress.notify_all()
            if error is not None:
                return

    def _write(self) -> Exception | None:
        try:
            self.last = transfer = self._engine.write(self._peer, self._batch)
            state = transfer.wait(Deadline.after(STEP))
        except Exception as error:  # an engine may raise anything, and the test shall show it
            return error
        if state is TransferState.DONE:
            return None
        return transfer.error or PDCoreError(
            "a write did not end", f"{state.value} after {STEP:.0f} s", "see the test"
        )
