"""Chunks on their way to one peer: planned, joined, cut to the engine's limits, submitted, settled.

Small deliveries that wait for the same peer share one engine call. Two models drive the same
:class:`Shipment`. *Workers*: the peer's lane calls ``run``, which waits. *Inline*: ``send`` calls
``begin`` and every ``poll`` calls ``advance``; neither waits.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from pdcore.engine import TransferEngine
from pdcore.errors import FailureCode, KVTransferError, PDCoreError
from pdcore.model import Deadline
from pdcore.outcome import Quiescence, TransferState
from pdcore.plan import join, slices, split_entries
from pdcore.prefill.delivery import Delivery, given_up
from pdcore.prefill.link import PeerLink
from pdcore.prefill.watched import Watched
from pdcore.quarantine import Quarantine
from pdcore.regions import WriteBatch

__all__ = ["Shipment"]

STEP = 0.1
"""Seconds after which who waits for a transfer looks whether it is wanted yet."""

_log = logging.getLogger("pdcore.transfer")


class Shipment:
    """Deliveries to one peer that go out in one engine call; one thread drives it at a time."""

    def __init__(
        self, engine: TransferEngine, quarantine: Quarantine, link: PeerLink, deliveries: Sequence[Delivery]
    ) -> None:
        self.ended = False
        self._engine = engine
        self._quarantine = quarantine
        self._link = link
        self._deliveries = list(deliveries)
        self._pieces: Iterator[WriteBatch] = iter(())
        self._piece: WriteBatch | None = None
        self._transfer: Watched | None = None

    def run(self) -> None:
        """Ship and wait for the end, at most until the last deadline."""
        deadline = max((d.deadline for d in self._deliveries), key=lambda d: d.at)
        self.begin()
        self.finish(deadline)
        if not self.ended:
            self._end(self._late())

    def finish(self, deadline: Deadline) -> None:
        """Drive a shipment that has begun, until it ends, nobody wants it, or the deadline passes."""
        while not self.ended and not deadline.expired:
            step = deadline.within(STEP)
            if self._transfer is not None:
                self._transfer.wait(step)
            else:
                self._link.budget.wait(len(self._piece or ()), step)
            self.advance()
            if not self._wanted():
                self.cancel()

    def begin(self) -> None:
        """Plan, and submit what the engine takes now; doesn't wait for it."""
        planned = [(d, batches) for d in self._deliveries if (batches := d.plan())]
        self._deliveries = [d for d, _ in planned]
        capabilities = self._engine.capabilities
        batch = join([batch for _, batches in planned for batch in batches])
        batch = split_entries(batch, capabilities.max_entry_bytes)
        self._pieces = slices(batch, capabilities.max_outstanding_entries)
        self._piece = next(self._pieces)
        self.advance()

    def advance(self) -> None:
        """Submit the next pieces as far as the engine has finished the ones before; never waits."""
        while not self.ended:
            if self._transfer is not None:
                state = self._transfer.poll()
                if state is TransferState.PENDING:
                    return
                if state is TransferState.FAILED:
                    self._end(self._transfer.error or _unexplained())
                    return
                self._piece_landed()
            if self._piece is None:
                self._end(None)
            elif not self._wanted():
                self._end(given_up())
            elif not self._link.budget.take(len(self._piece)):
                return
            else:
                self._submit(self._piece)

    def cancel(self) -> None:
        """Stop submitting; what is in flight stays with the deliveries."""
        if not self.ended:
            self._end(given_up())

    def _wanted(self) -> bool:
        return any(d.still_wanted() for d in self._deliveries)

    def _submit(self, piece: WriteBatch) -> None:
        try:
            self._transfer = Watched(self._engine.write(self._link.peer, piece), self._give_back)
        except PDCoreError as error:
            self._give_back()
            self._end(error)
        # A third party's adapter may raise anything; the rooms must end, and their pages are suspect.
        except Exception as error:
            _log.exception("the engine raised while writing to %s", self._link.identity)
            self._transfer = Watched(None, self._give_back)
            self._end(error)

    def _give_back(self) -> None:
        """Return what the piece under way took of the budget: it has ended, or nobody will ever tell."""
        piece, self._piece = self._piece, None
        if piece is not None:
            self._link.budget.give(len(piece))

    def _piece_landed(self) -> None:
        self._give_back()
        self._transfer = None
        self._piece = next(self._pieces, None)

    def _end(self, error: Exception | None) -> None:
        self.ended = True
        for delivery in self._deliveries:
            delivery.end(error)
        transfer = self._transfer
        if transfer is None:
            self._drained()
            return
        if transfer.quiescence is not Quiescence.DRAINED:
            for delivery in self._deliveries:
                delivery.quarantined()
        self._quarantine.settle(transfer, self._drained)

    def _drained(self) -> None:
        if self._transfer is not None:
            self._give_back()
        for delivery in self._deliveries:
            delivery.drained()

    def _late(self) -> KVTransferError:
        return KVTransferError(
            FailureCode.DEADLINE,
            "the transfer missed its deadline",
            f"{sum(d.nbytes for d in self._deliveries)} bytes were to be moved",
            "raise the request's deadline, or look why the peer is slow",
        )


def _unexplained() -> KVTransferError:
    return KVTransferError(
        FailureCode.ENGINE, "the transfer engine failed", "it gave no reason", "look at the engine's log"
    )
