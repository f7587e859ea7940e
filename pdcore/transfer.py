"""One chunk on its way to one peer: planned, cut to the engine's limits, submitted, settled.

Two models drive the same :class:`Delivery`. *Workers*: the peer's lane calls ``run``, which waits.
*Inline*: ``send`` calls ``begin`` and every ``poll`` calls ``advance``; neither waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from pdcore.engine import TransferEngine
from pdcore.errors import FailureCode, KVTransferError, PDCoreError, PlanError
from pdcore.link import PeerLink, TransferKVChunk
from pdcore.model import Deadline
from pdcore.outcome import Quiescence, Transfer, TransferState
from pdcore.plan import slices, split_entries
from pdcore.regions import WriteBatch
from pdcore.wire import RequestMetadata

__all__ = ["Delivery"]

_log = logging.getLogger("pdcore.transfer")


class _Untraceable(Transfer):
    """Stands for a write whose engine raised instead of returning a transfer: nobody can watch it."""

    def poll(self) -> TransferState:
        return TransferState.FAILED

    def wait(self, deadline: Deadline) -> TransferState:
        return TransferState.FAILED

    @property
    def quiescence(self) -> Quiescence:
        return Quiescence.UNKNOWN


class Delivery:
    """The copies of one chunk to one peer. One thread drives it at a time.

    ``on_end(delivery, error, transfer)`` is called once. ``transfer`` is what may still be moving
    bytes after an error, or None.
    """

    def __init__(
        self,
        engine: TransferEngine,
        link: PeerLink,
        chunk: TransferKVChunk,
        wanted: RequestMetadata,
        deadline: Deadline,
        still_wanted: Callable[[], bool],
        on_end: Callable[[Delivery, KVTransferError | None, Transfer | None], None],
    ) -> None:
        self.link = link
        self.chunk = chunk
        self.begun = False
        self.ended = False
        self.nbytes = 0
        self.entries = 0
        self.plan_seconds = 0.0
        self._engine = engine
        self._wanted = wanted
        self._deadline = deadline
        self._still_wanted = still_wanted
        self._on_end = on_end
        self._pieces: Iterator[WriteBatch] = iter(())
        self._piece: WriteBatch | None = None
        self._transfer: Transfer | None = None

    def run(self) -> None:
        """Deliver and wait for the end, at most until the deadline."""
        self.begin()
        while not self.ended:
            if self._transfer is not None:
                self._transfer.wait(self._deadline)
            elif self._piece is not None:
                self.link.budget.wait(len(self._piece), self._deadline)
            self.advance()
            if not self.ended and self._deadline.expired:
                self._end(self._late(), self._transfer)

    def begin(self) -> None:
        """Plan and submit what the engine takes now; doesn't wait for it."""
        if not self._still_wanted():
            self._end(self._unwanted(), None)
            return
        started = time.monotonic()
        capabilities = self._engine.capabilities
        try:
            batch = split_entries(self.link.plan(self.chunk, self._wanted), capabilities.max_entry_bytes)
            self.nbytes, self.entries = batch.nbytes, len(batch)
            self._pieces = slices(batch, capabilities.max_outstanding_entries)
            self._piece = next(self._pieces)
        except PDCoreError as error:
            self._end(self._mapped(error), None)
        self.plan_seconds = time.monotonic() - started
        self.advance()
        self.begun = True

    def advance(self) -> None:
        """Submit the next pieces as far as the engine has finished the ones before; never waits."""
        while not self.ended:
            if self._transfer is not None:
                state = self._transfer.poll()
                if state is TransferState.PENDING:
                    return
                if state is TransferState.FAILED:
                    self._end(self._mapped(self._transfer.error), self._transfer)
                    return
                self._piece_landed()
            if self._piece is None:
                self._end(None, None)
            elif not self._still_wanted():
                self._end(self._unwanted(), None)
            elif not self.link.budget.take(len(self._piece)):
                return
            else:
                self._submit(self._piece)

    def cancel(self) -> None:
        """Stop submitting; what is in flight goes to ``on_end``."""
        if not self.ended:
            self._end(self._unwanted(), self._transfer)

    def _submit(self, piece: WriteBatch) -> None:
        try:
            self._transfer = self._engine.write(self.link.peer, piece)
        except PDCoreError as error:
            self.link.budget.give(len(piece))
            self._end(self._mapped(error), None)
        # A third party's adapter may raise anything; the room must end, and its pages are suspect.
        except Exception as error:
            _log.exception("the engine raised while writing to %s", self.link.identity)
            self._end(self._mapped(error), _Untraceable())

    def _piece_landed(self) -> None:
        assert self._piece is not None
        self.link.budget.give(len(self._piece))
        self._transfer = None
        self._piece = next(self._pieces, None)

    def _end(self, error: KVTransferError | None, transfer: Transfer | None) -> None:
        self.ended = True
        self._on_end(self, error, transfer)

    def drained(self) -> None:
        """Give the budget of a failed piece back, once the engine proved it drained."""
        if self._transfer is not None and self._piece is not None:
            self.link.budget.give(len(self._piece))

    def _mapped(self, error: Exception | None) -> KVTransferError:
        where = f"room {self.chunk.room} to {self.link.identity}"
        if isinstance(error, KVTransferError):
            return KVTransferError(error.code, f"{error.happened} ({where})", error.there_is, error.to_do)
        if isinstance(error, PDCoreError):
            code = FailureCode.PLAN if isinstance(error, PlanError) else FailureCode.ENGINE
            return KVTransferError(code, f"{error.happened} ({where})", error.there_is, error.to_do)
        return KVTransferError(
            FailureCode.ENGINE,
            f"the transfer engine failed ({where})",
            repr(error) if error else "it gave no reason",
            "look at the engine's log; report it to the backend's author",
        )

    def _late(self) -> KVTransferError:
        return KVTransferError(
            FailureCode.DEADLINE,
            f"the transfer of room {self.chunk.room} to {self.link.identity} missed its deadline",
            f"{self.entries} entries, {self.nbytes} bytes were to be moved",
            "raise the request's deadline, or look why the peer is slow",
        )

    def _unwanted(self) -> KVTransferError:
        return KVTransferError(
            FailureCode.ABORTED,
            f"room {self.chunk.room} ended before its chunk was submitted",
            f"{len(self.chunk.pages)} pages were left",
            "see the room's failure",
        )
