"""Threads that copy, so that ``write`` returns at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Deadline

__all__ = ["Copiers", "Copy"]

Copy = Callable[[], "KVTransferError | None"]
"""Makes one batch's copies; returns why it failed, None if it did not."""


class Submitted(Transfer):
    """A batch that one of the threads copies."""

    def __init__(self) -> None:
        self._ended = threading.Event()

    def end(self, error: KVTransferError | None) -> None:
        """Tell the outcome; no byte of the batch moves any more."""
        self.error = error
        self._ended.set()

    def poll(self) -> TransferState:
        if not self._ended.is_set():
            return TransferState.PENDING
        return TransferState.FAILED if self.error else TransferState.DONE

    def wait(self, deadline: Deadline) -> TransferState:
        self._ended.wait(deadline.remaining())
        return self.poll()

    @property
    def quiescence(self) -> Quiescence:
        return Quiescence.DRAINED if self._ended.is_set() else Quiescence.IN_FLIGHT


class Copiers:
    """``size`` threads that take batches off one queue until they are dismissed."""

    def __init__(self, size: int) -> None:
        self._queue: queue.SimpleQueue[tuple[Submitted, Copy] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"pdcore-local-copy-{n}", daemon=True)
            for n in range(size)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, copy: Copy) -> Transfer:
        """Hand over a batch."""
        transfer = Submitted()
        self._queue.put((transfer, copy))
        return transfer

    def dismiss(self, deadline: Deadline) -> bool:
        """End the threads after the batches they were given; False when the deadline came first."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(deadline.remaining())
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            transfer, copy = job
            try:
                transfer.end(copy())
            except Exception as error:  # the thread serves other batches too
                transfer.end(
                    KVTransferError(
                        FailureCode.ENGINE,
                        "a copy thread of the backend 'local' failed",
                        f"{type(error).__name__}: {error}",
                        "report this with the traceback of the cause",
                    )
                )
