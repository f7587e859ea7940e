"""What a sender needs of its manager."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from pdcore.errors import KVTransferError
from pdcore.events import Events
from pdcore.memory.pools import Pools
from pdcore.model import PeerIdentity
from pdcore.prefill.answers import Answers
from pdcore.prefill.delivery import Delivery
from pdcore.prefill.link import Destination, PeerLink
from pdcore.prefill.ready_waiter import Waiter
from pdcore.prefill.transfer import Shipment
from pdcore.rooms.status import RoomTable
from pdcore.wire import Message

if TYPE_CHECKING:
    from pdcore.prefill.sender import KVSender

__all__ = ["SenderHost"]


class SenderHost(Protocol):
    """What a sender needs of its manager."""

    answers: Answers
    events: Events
    pools: Pools
    rooms: RoomTable
    waiter: Waiter

    def dispatch(self, link: PeerLink, delivery: Delivery, *, from_send: bool) -> Shipment | None:
        """Have a delivery done; returns the shipment that ``poll`` must advance, if any."""

    def tell(self, destination: Destination, message: Message) -> None:
        """Post a message to a destination."""

    def examine(self, sender: KVSender, destinations: Sequence[Destination]) -> bool:
        """Have decode verify what was sent, and ``conclude`` called; False if that is not wanted."""

    def unproven(self, target: PeerIdentity) -> str:
        """Why writes to a decode process have not ended, of rooms that have."""

    def company(self, sender: KVSender) -> tuple[list[PeerIdentity], int]:
        """Return the decode ranks that have a room open and did not ask, and how many are paired."""

    def ended(self, sender: KVSender) -> None:
        """A room has ended: tell the decode ranks that have it open and did not ask for it."""

    def forget(self, sender: KVSender) -> None:
        """Free the id of a room that was cleared."""

    def suspect(self, link: PeerLink, failure: KVTransferError) -> None:
        """An engine says that this peer is gone."""
