"""What one request cost, as each side saw it."""

from __future__ import annotations

import time

import attrs

from pdcore.model import KVPoll, RoomId

__all__ = ["Moments", "RequestMetrics"]


@attrs.define
class Moments:
    """When, on the monotonic clock, both sides of a room had met, and a byte could move; 0: not yet."""

    met: float = 0.0
    first: float = 0.0


@attrs.frozen
class RequestMetrics:
    """Figures of one request. Times are seconds; those not reached yet are 0.

    ``total`` runs from opening the room to its end. ``bootstrap`` ends when both sides know each
    other, ``waiting`` when the first byte can move, ``transfer`` with the room. ``plan`` is the
    planning within ``transfer``. ``slots``: so many staging slots carried it packed; 0: it went straight to
    its pages. Decode knows no ``plan``, ``entries`` and ``chunks``.
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
    slots: int = 0

    @classmethod
    def between(
        cls,
        room: RoomId,
        status: KVPoll,
        opened_at: float,
        moments: Moments,
        ended_at: float | None,
        *,
        pages: int,
        nbytes: int,
        chunks: int = 0,
        entries: int = 0,
        plan: float = 0.0,
        slots: int = 0,
    ) -> RequestMetrics:
        """Return the figures of a room with these moments; None: it has not ended."""
        end = ended_at or time.monotonic()
        met, first = moments.met or end, moments.first or end
        return cls(
            room,
            status,
            pages,
            nbytes,
            chunks,
            entries,
            bootstrap=met - opened_at,
            waiting=max(0.0, first - met),
            transfer=end - first,
            plan=plan,
            total=end - opened_at,
            slots=slots,
        )
