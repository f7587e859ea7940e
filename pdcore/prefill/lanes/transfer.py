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
from collections.abc import Callable, Sequence
from functools import partial

from pdcore.contract.engine import TransferEngine
from pdcore.contract.outcome import Quiescence, TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.errors import PDCoreError
from pdcore.model import Deadline
from pdcore.plan import Slicer, join, split_entries
from pdcore.prefill.lanes.delivery import Delivery, all_drained
from pdcore.prefill.lanes.engine_transfer import GuardedTransfer
from pdcore.prefill.lanes.failures import given_up, late, unexplained
from pdcore.prefill.lanes.flight import FilledSlot, Flight, Part
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


class Shipment:
    """Deliveries to one peer that go out together; one thread drives it at a time.

    ``nbytes`` is an estimate, until they are planned. With a ``pace`` (workers) they go out in
    pieces of it, else in what the engine takes at once. Where that is faster, or nothing else is allowed,
    they go packed, each by itself: then no byte can land in a page, and they are drained as soon as they end.
    The lock guards ``_unsettled``.
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
        self._estimate = nbytes
        self._engine = engine
        self._quarantine = quarantine
        self._link = link
        self._deliveries = list(deliveries)
        self._deadline = max((d.deadline for d in deliveries), key=lambda d: d.at)
        self._pace = pace
        self._depth = DEPTH if pace is not None and engine.capabilities.asynchronous else 1
        self._parts: deque[Part] | None = None
        self._flights: deque[Flight] = deque()
        self._unsettled = 0
        self._lock = threading.Lock()
        self._landed_at = 0.0

    @property
    def left(self) -> int:
        """Bytes that the engine has not been given; an estimate until they are planned."""
        return self._estimate if self._parts is None else sum(part.rest.nbytes for part in self._parts)

    def step(self, *, alone: bool) -> Progress:
        """Go on by one piece at most; doesn't wait.

        ``alone``: nothing else is under way, so that the time it takes tells how fast the engine is.
        """
        self.plan()
        moved = self._reap(alone)
        if self.ended:
            return Progress.MADE
        if self._deadline.expired:
            self._end(late(sum(d.nbytes for d in self._deliveries), self.left))
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
        step, slots = self._deadline.within(seconds), self._link.slots
        if self._flights:
            self._flights[0].transfer.wait(step)
        elif slots is not None and self._next is not None and self._next.packed is not None:
            if slots.wait(step) and not slots.dead:
                self._link.budget.wait(1, step)
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
        if self._parts is not None:
            return
        planned = [(d, batches) for d in self._deliveries if (batches := d.plan())]
        self._deliveries = [d for d, _ in planned]
        entries, nbytes = sum(d.entries for d in self._deliveries), sum(d.nbytes for d in self._deliveries)
        slots = self._link.slots
        if slots is not None and slots.wanted_for(entries, nbytes):
            each = ((d, split_entries(join(batches), slots.slot_bytes)) for d, batches in planned)
            self._parts = deque(Part(Slicer(batch, d.nbytes), d) for d, batch in each)
            for delivery in self._deliveries:
                delivery.loosen()
            return
        batch = join([batch for _, batches in planned for batch in batches])
        longest = self._engine.capabilities.max_entry_bytes
        if self._pace is not None:
            longest = min(longest or ENTRY_BYTES, ENTRY_BYTES)
        self._parts = deque([Part(Slicer(split_entries(batch, longest), nbytes))])

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
                self._end(flight.transfer.error or unexplained())
                return True
            self._flights.popleft()
            flight.give_back()
            if flight.filled is not None:
                flight.filled.delivery.hand(flight.filled.slot, flight.filled.piece)
            del flight.transfer  # which knows the flight: a circle, and garbage collections take time
            now = time.monotonic()
            if alone and flight.paced and self._pace is not None:
                self._pace.took(now - max(flight.at, self._landed_at))
            self._landed_at = now
        if not self.ended and not self._flights and self._parts is not None and self._next is None:
            self._end(None)
        return moved

    def _wanted(self) -> bool:
        return any(d.still_wanted() for d in self._deliveries)

    @property
    def _next(self) -> Part | None:
        """What goes out next; None: all has gone out, or nothing is planned yet."""
        while self._parts and not self._parts[0].rest.entries:
            self._parts.popleft()
        return self._parts[0] if self._parts else None

    @property
    def _most_entries(self) -> int:
        """Entries of the next piece, at most."""
        left = part.rest.entries if (part := self._next) is not None else 0
        limits = [left]
        if (most := self._engine.capabilities.max_outstanding_entries) is not None:
            limits.append(most if left <= most else max(1, most // self._depth))
        if self._pace is not None:
            limits.append(self._pace.entries)
        return min(limits)

    def _submit(self) -> Progress:
        """Give the engine another piece if it takes one now."""
        part = self._next
        if part is None or len(self._flights) >= self._depth:
            return Progress.ENGINE_BUSY
        if part.packed is not None:
            return self._submit_packed(part.rest, part.packed)
        rest, entries = part.rest, self._most_entries
        if not self._link.budget.take(entries):
            return Progress.NO_BUDGET
        piece = rest.take(entries, None if self._pace is None else self._pace.nbytes)
        if len(piece) < entries:
            self._link.budget.give(entries - len(piece))
        return self._write(Flight(self._link, len(piece), paced=rest.entries > 0), lambda: piece)

    def _submit_packed(self, rest: Slicer, delivery: Delivery) -> Progress:
        """Fill a slot with the next piece, if one is free, and give it to the engine."""
        slots, budget = self._link.slots, self._link.budget
        assert slots is not None
        if slots.dead:
            self._end(slots.exhausted())
            return Progress.MADE
        if not delivery.hold():
            self._drop(delivery)
            return Progress.MADE
        slot = slots.take()
        if slot is None or not budget.take(1):
            delivery.loosen()
            if slot is not None:
                slots.give(slot)
            return Progress.NO_BUDGET
        piece = rest.take(slots.most_entries, slots.slot_bytes)
        delivery.slots += 1
        flight = Flight(self._link, 1, filled=FilledSlot(slots, slot, delivery, piece))
        return self._write(flight, partial(slots.pack, slot, piece, delivery.loosen))

    def _drop(self, delivery: Delivery) -> None:
        """Leave out one that nobody wants any more; those beside it go on."""
        self._parts = deque(part for part in self._parts or () if part.packed is not delivery)
        self._deliveries.remove(delivery)
        delivery.refuse()

    def _write(self, flight: Flight, batch: Callable[[], WriteBatch]) -> Progress:
        """Have the engine make some copies."""
        copies = None
        try:
            copies = batch()
            transfer = self._engine.write(self._link.peer, copies)
            flight.transfer = GuardedTransfer(transfer, flight.give_back)
        # A third party's adapter may raise anything; the rooms must end, and what it wrote to is suspect.
        except Exception as error:
            if copies is None or isinstance(error, PDCoreError):  # the engine has nothing of it
                flight.give_back()
                if flight.filled is not None:
                    flight.filled.slots.give(flight.filled.slot)
            else:
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
        flights = [flight for flight in self._flights if flight.filled is None]
        for flight in self._flights:
            if flight.filled is not None:  # what it was filled from is free, the slot is not
                flight.filled.slots.doubt()
                self._quarantine.settle(flight.transfer, self._link, flight.believe)
        if not flights:
            all_drained(self._deliveries)
            return
        if any(flight.transfer.quiescence is not Quiescence.DRAINED for flight in flights):
            for delivery in self._deliveries:
                delivery.quarantined()
        self._unsettled = len(flights)
        for flight in flights:
            self._quarantine.settle(flight.transfer, self._link, partial(self._settled, flight))

    def _settled(self, flight: Flight) -> None:
        flight.give_back()
        with self._lock:
            self._unsettled -= 1
            last = self._unsettled == 0
        if last:
            all_drained(self._deliveries)
