"""One chunk of a request, and its way to one rank."""

from __future__ import annotations

from typing import NewType

import attrs

from pdcore.model import Generation, RoomId
from pdcore.plan import IndexArray

__all__ = ["DeliveryId", "TransferKVChunk", "delivery_id", "generation_of"]

DeliveryId = NewType("DeliveryId", int)
"""One chunk on its way to one peer: the room's generation, and which of its deliveries."""

DELIVERIES_BITS = 32


def delivery_id(generation: Generation, number: int) -> DeliveryId:
    """Return the id of a delivery of a room."""
    return DeliveryId(generation << DELIVERIES_BITS | number)


def generation_of(delivery: DeliveryId) -> Generation:
    """Return the generation of the room that a delivery is of."""
    return Generation(delivery >> DELIVERIES_BITS)


@attrs.frozen(eq=False)
class TransferKVChunk:
    """One ``send``: ``pages`` are pages ``start:start + len(pages)`` of the request.

    The last chunk carries the aux slot and one index list per state component.
    """

    room: RoomId
    generation: Generation
    pages: IndexArray
    start: int
    is_last: bool
    aux_index: int | None = None
    state_indices: tuple[IndexArray, ...] = ()
