"""Carries out what the machine wants sent: a chunk to a decode rank, over one of its lanes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from pdcore.contract.engine import TransferEngine
from pdcore.contract.regions import WriteBatch
from pdcore.errors import FailureCode, KVTransferError
from pdcore.events import Events
from pdcore.managers.driver import Driver
from pdcore.model import Deadline
from pdcore.prefill.lanes.delivery import Delivery
from pdcore.prefill.lanes.failures import given_up
from pdcore.prefill.lanes.transfer import Shipment
from pdcore.prefill.link import PeerLink
from pdcore.prefill.links import Links
from pdcore.prefill.sender import KVSender
from pdcore.protocol.actions import Ship
from pdcore.protocol.chunk import DeliveryId
from pdcore.protocol.room import Room
from pdcore.protocol.stimuli import DeliveryDrained, DeliveryEnded, SlotWritten, Tick
from pdcore.rooms.quarantine import Quarantine
from pdcore.wire import Packed

__all__ = ["Shipping"]


class Shipping:
    """``inline``: what a ``send`` dispatches itself is submitted there, and driven by ``poll``."""

    def __init__(
        self,
        engine: TransferEngine,
        quarantine: Quarantine,
        links: Links,
        events: Events,
        driver: Driver,
        *,
        inline: bool,
    ) -> None:
        self._engine, self._quarantine, self._links = engine, quarantine, links
        self._events, self._driver, self._inline = events, driver, inline
        self._numbers = itertools.count(1)

    def ship(self, sender: KVSender, do: Ship) -> None:
        """Have a chunk sent; never waits."""
        link, record, chunk = self._links.at(do.route), sender.record, do.chunk
        if link is None:  # its lanes had no place
            self._ended(do.delivery, record, given_up())
            self._drained([do.delivery])
            return
        delivery = Delivery(
            do.delivery,
            chunk,
            link.identity,
            partial(link.plan, chunk, do.wanted),
            Deadline(record.deadline),
            lambda: not record.over,
            partial(self._ended, do.delivery, record),
            self._drained,
            partial(self._hand, do, link),
            self._events,
        )
        sender.sent.add(delivery)
        if self._inline and sender.submits_here:
            shipment = Shipment(self._engine, self._quarantine, link, [delivery])
            shipment.begin()
            sender.sent.drive(shipment)
            return
        # Chunks that had to wait for decode go on the lane in both models: there is no send to submit in.
        link.outbox(chunk.room).post(delivery, partial(Shipment, self._engine, self._quarantine, link))

    def _ended(self, delivery: DeliveryId, record: Room, error: KVTransferError | None) -> None:
        if error is not None:
            if error.code is FailureCode.DEADLINE and record.deadline <= time.monotonic():
                self._driver.feed(Tick())  # which says what was awaited
            self._driver.feed(DeliveryEnded(delivery, error))

    def _hand(self, do: Ship, link: PeerLink, slot: int, piece: WriteBatch) -> None:
        """A slot of the peer has a piece of a chunk: the peer is told which bytes belong where."""
        entries = piece.remote_regions, piece.starts, piece.remote_offsets, piece.lengths
        columns = (column.view(np.int64) for column in entries)
        wanted, number = do.wanted, next(self._numbers)
        assert link.slots is not None
        link.slots.hand(slot, number)
        packed = Packed(wanted.room, wanted.generation, slot, number, *columns)
        self._driver.feed(SlotWritten(do.delivery, do.route, link.identity, packed))

    def _drained(self, deliveries: Sequence[DeliveryId]) -> None:
        self._driver.feed(*map(DeliveryDrained, deliveries))
