"""What one request cost, as each side saw it."""

from __future__ import annotations

import attrs

from pdcore.model import KVPoll, RoomId

__all__ = ["RequestMetrics"]


@attrs.frozen
class RequestMetrics:
    """Figures of one request. Times are seconds; those not reached yet are 0.

    ``total`` runs from opening the room to its end. ``bootstrap`` ends when both sides know each
    other, ``waiting`` when the first byte can move, ``transfer`` with the room. ``plan`` is the
    planning within ``transfer``. Decode knows no ``plan``, ``entries`` and ``chunks``.
    """

    room: RoomId
    status: KVPoll
    pages: int
    nbytes: int
    chunks: int
    entries: int
    bootstrap: float
    waiting: float
    transfer: float
    plan: float
    total: float
