"""The chunks of one room that were dispatched, and what they came to."""

from __future__ import annotations

from pdcore.events.metrics import Moments, RequestMetrics
from pdcore.model import Deadline, PeerIdentity
from pdcore.prefill.delivery import Delivery, TransferKVChunk
from pdcore.prefill.transfer import Shipment
from pdcore.rooms.status import Room

__all__ = ["Sent"]


class Sent:
    """The deliveries of a room, in order, and the shipments that its scheduler drives (inline). Its sender
    adds to them, any thread reads."""

    def __init__(self) -> None:
        self._deliveries: list[Delivery] = []
        self._shipments: list[Shipment] = []

    def __len__(self) -> int:
        return len(self._deliveries)

    def add(self, delivery: Delivery) -> None:
        """Take a delivery that goes out now."""
        self._deliveries.append(delivery)

    def drive(self, shipment: Shipment | None) -> None:
        """Take a shipment that no lane drives, if it is one."""
        if shipment is not None:
            self._shipments.append(shipment)

    def advance(self, *, wanted: bool) -> None:
        """Have those shipments go on, or stop; never waits."""
        for shipment in self._shipments:
            if not shipment.ended:
                shipment.advance() if wanted else shipment.cancel()

    def finish(self, deadline: Deadline, own: Deadline) -> None:
        """Drive those shipments until they end, or a deadline passes: the caller's or the room's own."""
        for shipment in self._shipments:
            shipment.finish(min(deadline, own, key=lambda d: d.remaining()))

    def chunks_to(self, peer: PeerIdentity) -> list[TransferKVChunk]:
        """Return what was sent to a peer, in order."""
        return [d.chunk for d in self._deliveries if d.peer == peer]

    def metric(self, record: Room, moments: Moments, pages: int) -> RequestMetrics:
        """Return the figures of the room, of which so many pages were handed in."""
        deliveries = self._deliveries
        return RequestMetrics.between(
            record.room,
            record.status,
            record.opened_at,
            moments,
            record.ended_at,
            pages=pages,
            nbytes=sum(d.nbytes for d in deliveries),
            chunks=len(deliveries),
            entries=sum(d.entries for d in deliveries),
            plan=sum(d.plan_seconds for d in deliveries),
        )
