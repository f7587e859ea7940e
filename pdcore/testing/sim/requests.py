"""Requests as their schedulers see them: one room on several nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pdcore.model import Generation, RoomId
from pdcore.protocol.room import Room
from pdcore.protocol.send.send_room import SendRoom

if TYPE_CHECKING:
    from pdcore.testing.sim.node import SimulatedRank

__all__ = ["Request", "Side"]


@attrs.define(eq=False)
class Side:
    """One request on one node. ``silent``: no byte of it can move any more."""

    node: SimulatedRank
    request: Request
    generation: Generation
    pages: list[int]
    opened_at: float = 0.0
    ended: bool = False
    ended_at: float = 0.0
    failed: bool = False
    silent: bool = False
    silent_at: float = 0.0
    cleared: bool = False
    room: Room | None = None

    def heard(self, other: Side) -> Generation | None:
        """Return the last generation of its room that a side which sends has heard another one speak of."""
        return self.room.heard.get(other.node.route) if isinstance(self.room, SendRoom) else None

    @property
    def serial(self) -> int:
        """The request's number, which no other has."""
        return self.request.serial


@attrs.define(eq=False)
class Request:
    """``ranks`` are there on both sides, of which ``open`` have yet to clear it.

    ``misfit``: the two sides do not ask for the same.
    """

    serial: int
    room: RoomId
    pages: int
    aux: int | None
    misfit: bool = False
    ranks: int = 0
    open: int = 0
    over: bool = False
    sides: list[Side] = attrs.field(factory=list)
