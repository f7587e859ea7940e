"""Chunks on their way to one peer: planned, joined, cut to the engine's limits, submitted, settled.

Small deliveries that wait for the same peer share one engine call. Two models drive the same
:class:`Shipment`. *Workers*: the peer's lane calls ``step`` and ``wait`` in turns with its other shipments,
a piece at a time. *Inline*: ``send`` calls ``begin`` and every ``poll`` calls ``advance``; neither waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from functools import partial

from pdcore.contract.engine import TransferEngine
from pdcore.contract.outcome import Quiescence, TransferState
from pdcore.errors import FailureCode, KVTransferError, PDCoreError
from pdcore.model import Deadline
from pdcore.plan import Slicer, join, split_entries
from pdcore.prefill.lanes.delivery import Delivery, all_drained, given_up
from pdcore.prefill.lanes.engine_transfer import GuardedTransfer
from pdcore.prefill.lanes.pace import ENTRY_BYTES, Pace
from pdcore.prefill.lanes.turns import Progress
from pdcore.prefill.link import PeerLink
from pdcore.rooms.quarantine import Quarantine

__all__ = ["Shipment"]

STEP = 0.1
"""Seconds after which who waits for a transfer looks whether it is wanted yet."""
DEPTH = 2
"""Pieces under way at once where a lane cuts them: the engine has the next one when one has landed."""

_log = logging.getLogger("pdcore.transfer")


class _Flight:
    """A piece that the engine has, and what it took of the peer's budget: given back once.

    ``paced``: more pieces follow, so that this one is as large as the pace says.
    """

    transfer: GuardedTransfer

    def __init__(self, link: PeerLink, entries: int, *, paced: bool) -> None:
        self.paced = paced
        self.at = time.monotonic()
        self._link, self._entries = link, entries

    def give_back(self) -> None:
        """Return it: the piece has ended, or nobody will ever tell."""
        entries, self._entries = self._entries, 0
        if entries:
            self._link.budget.give(entries)


class Shipment:
    """Deliveries to one peer that go out together; one thread drives it at a time.

    ``left`` is ``nbytes``, an estimate, until they are planned. With a ``pace`` (workers) they go out in
    pieces of it, else in what the engine takes at once. The lock guards ``_unsettled``.
    """

    def __init__(
        self,
        engine: TransferEngine,
        quarantine: Quarantine,
        link: PeerLink,
        deliveries: Sequence[Delivery],
        nbytes: int = 0,
        pace: Pace | None = None,
    ) -> None:
        self.ended = False
        self.left = nbytes
        self._engine = engine
        self._quarantine = quarantine
        self._link = link
        self._deliveries = list(deliveries)
        self._deadline = max((d.deadline for d in deliveries), key=lambda d: d.at)
        self._pace = pace
        self._depth = DEPTH if pace is not None and engine.capabilities.asynchronous else 1
        self._rest: Slicer | None = None
        self._flights: deque[_Flight] = deque()
        self._unsettled = 0
        self._lock = threading.Lock()
        self._landed_at = 0.0

    def step(self, *, alone: bool) -> Progress:
        """Go on by one piece at most; doesn't wait.

        ``alone``: nothing else is under way, so that the time it takes tells how fast the engine is.
        """
        self.plan()
        moved = self._reap(alone)
        if self.ended:
            return Progress.MADE
        if self._deadline.expired:
            self._end(self._late())
        elif not self._wanted():
            self._end(given_up())
        else:
            progress = self._submit()
            if progress is Progress.MADE:
                self._reap(alone)
            return Progress.MADE if moved else progress
        return Progress.MADE

    def look(self) -> bool:
        """Take note of pieces that ended; return whether there were any."""
        return self._reap(alone=False)

    def wait(self, seconds: float) -> None:
        """Wait until the engine has come along, or for so long."""
        if self.ended:
            return
        step = self._deadline.within(seconds)
        if self._flights:
            self._flights[0].transfer.wait(step)
        else:
            self._link.budget.wait(self._most_entries, step)

    def finish(self, deadline: Deadline) -> None:
        """Drive a shipment that has begun, until it ends, nobody wants it, or the deadline passes."""
        while not self.ended and not deadline.expired:
            self.wait(min(STEP, deadline.remaining()))
            self.advance()
            if not self._wanted():
                self.cancel()

    def begin(self) -> None:
        """Plan, and submit what the engine takes now; doesn't wait for it."""
        self.plan()
        self.advance()

    def advance(self) -> None:
        """Submit the next pieces as far as the engine has finished the ones before; never waits."""
        while not self.ended and self.step(alone=False) is Progress.MADE:
            pass

    def cancel(self) -> None:
        """Stop submitting; what is in flight stays with the deliveries."""
        if not self.ended:
            self._end(given_up())

    def plan(self) -> None:
        """Find out what is to be copied, unless that is known: ``left`` is exact then."""
        if self._rest is not None:
            return
        planned = [(d, batches) for d in self._deliveries if (batches := d.plan())]
        self._deliveries = [d for d, _ in planned]
        batch = join([batch for _, batches in planned for batch in batches])
        longest = self._engine.capabilities.max_entry_bytes
        if self._pace is not None:
            longest = min(longest or ENTRY_BYTES, ENTRY_BYTES)
        self._rest = Slicer(split_entries(batch, longest), sum(d.nbytes for d in self._deliveries))
        self.left = self._rest.nbytes

    def _reap(self, alone: bool) -> bool:
        """Take note of pieces that ended; end with the last one."""
        moved = False
        while self._flights and not self.ended:
            flight = self._flights[0]
            state = flight.transfer.poll()
            if state is TransferState.PENDING:
                return moved
            moved = True
            if state is TransferState.FAILED:
                self._end(flight.transfer.error or _unexplained())
                return True
            self._flights.popleft()
            flight.give_back()
            del flight.transfer  # which knows the flight: a circle, and garbage collections take time
            now = time.monotonic()
            if alone and flight.paced and self._pace is not None:
                self._pace.took(now - max(flight.at, self._landed_at))
            self._landed_at = now
        if not self.ended and not self._flights and self._rest is not None and not self._rest.entries:
            self._end(None)
        return moved

    def _wanted(self) -> bool:
        return any(d.still_wanted() for d in self._deliveries)

    @property
    def _most_entries(self) -> int:
        """Entries of the next piece, at most."""
        assert self._rest is not None
        limits = [self._rest.entries]
        if (most := self._engine.capabilities.max_outstanding_entries) is not None:
            limits.append(most if self._rest.entries <= most else max(1, most // self._depth))
        if self._pace is not None:
            limits.append(self._pace.entries)
        return min(limits)

    def _submit(self) -> Progress:
        """Give the engine another piece if it takes one now."""
        rest, entries = self._rest, self._most_entries
        if rest is None or entries == 0 or len(self._flights) >= self._depth:
            return Progress.ENGINE_BUSY
        if not self._link.budget.take(entries):
            return Progress.NO_BUDGET
        piece = rest.take(entries, None if self._pace is None else self._pace.nbytes)
        if len(piece) < entries:
            self._link.budget.give(entries - len(piece))
        self.left = rest.nbytes
        flight = _Flight(self._link, len(piece), paced=rest.entries > 0)
        try:
            flight.transfer = GuardedTransfer(self._engine.write(self._link.peer, piece), flight.give_back)
        except PDCoreError as error:
            flight.give_back()
            self._end(error)
        # A third party's adapter may raise anything; the rooms must end, and their pages are suspect.
        except Exception as error:
            _log.exception("the engine raised while writing to %s", self._link.identity)
            flight.transfer = GuardedTransfer(None, flight.give_back)
            self._flights.append(flight)
            self._end(error)
        else:
            self._flights.append(flight)
        return Progress.MADE

    def _end(self, error: Exception | None) -> None:
        self.ended = True
        for delivery in self._deliveries:
            delivery.end(error)
        flights = tuple(self._flights)
        if not flights:
            all_drained(self._deliveries)
            return
        if any(flight.transfer.quiescence is not Quiescence.DRAINED for flight in flights):
            for delivery in self._deliveries:
                delivery.quarantined()
        self._unsettled = len(flights)
        for flight in flights:
            self._quarantine.settle(flight.transfer, self._link, partial(self._settled, flight))

    def _settled(self, flight: _Flight) -> None:
        flight.give_back()
        with self._lock:
            self._unsettled -= 1
            last = self._unsettled == 0
        if last:
            all_drained(self._deliveries)

    def _late(self) -> KVTransferError:
        return KVTransferError(
            FailureCode.DEADLINE,
            "the transfer missed its deadline",
            f"{sum(d.nbytes for d in self._deliveries)} bytes were to be moved, {self.left} had not gone out",
            "raise the request's deadline, or look why the peer is slow",
        )


def _unexplained() -> KVTransferError:
    return KVTransferError(
        FailureCode.ENGINE, "the transfer engine failed", "it gave no reason", "look at the engine's log"
    )
