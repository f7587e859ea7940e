"""The chunks of one room that were dispatched, and what they came to."""

from __future__ import annotations

from pdcore.events.metrics import Moments, RequestMetrics
from pdcore.model import Deadline, PeerIdentity
from pdcore.prefill.lanes.delivery import Delivery
from pdcore.prefill.lanes.transfer import Shipment
from pdcore.protocol.chunk import TransferKVChunk
from pdcore.protocol.send.send_room import SendRoom

__all__ = ["Sent"]


class Sent:
    """The deliveries of a room, in order, and the shipments that its scheduler drives (inline). Who carries
    actions out adds to them, any thread reads."""

    def __init__(self) -> None:
        self._deliveries: list[Delivery] = []
        self._shipments: list[Shipment] = []

    def add(self, delivery: Delivery) -> None:
        """Take a delivery that goes out now."""
        self._deliveries.append(delivery)

    def let_go(self) -> None:
        """Nobody wants them any more: what is not under way is drained."""
        for delivery in self._deliveries:
            delivery.let_go()

    def drive(self, shipment: Shipment) -> None:
        """Take a shipment that no lane drives."""
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

    def metric(self, record: SendRoom) -> RequestMetrics:
        """Return the figures of the room."""
        deliveries = self._deliveries
        return RequestMetrics.between(
            record.room,
            record.status,
            record.opened_at,
            Moments(record.met_at, record.first_at),
            record.ended_at,
            pages=record.sent,
            nbytes=sum(d.nbytes for d in deliveries),
            chunks=len(deliveries),
            entries=sum(d.entries for d in deliveries),
            plan=sum(d.plan_seconds for d in deliveries),
            slots=sum(d.slots for d in deliveries),
        )
