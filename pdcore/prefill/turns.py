"""What waits for one lane, and in which turns it goes out: a short request never waits for a whole long one.

A large shipment goes out in pieces (:mod:`~pdcore.prefill.pace`). After each piece the lane looks at who
waits: one turn is for the shipment that has least left, the next for the oldest, so that neither starves
the other. The deliveries of one room keep their order.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Protocol

from pdcore.model import RoomId
from pdcore.prefill.delivery import Delivery
from pdcore.prefill.lane import Lane
from pdcore.prefill.pace import Pace

__all__ = ["Load", "Outbox", "Progress", "Turn"]

SHARED_BYTES = 2**20
"""Deliveries share an engine call until they reach this many bytes: past it, sharing gains nothing."""
MOMENT, WHILE = 0.002, 0.1
"""Seconds to wait for the engine before looking at who waits: with several under way, and with one."""

_log = logging.getLogger("pdcore.transfer")


class Progress(Enum):
    """What a turn came to."""

    MADE = "it went on, or ended"
    ENGINE_BUSY = "the engine must come along first"
    NO_BUDGET = "what others have under way must land first"


class Turn(Protocol):
    """A shipment, as the lane drives it."""

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""

    @property
    def left(self) -> int:
        """Bytes that have not gone out, as far as is known."""

    def step(self, *, alone: bool) -> Progress:
        """Go on by one piece at most; doesn't wait."""

    def look(self) -> bool:
        """Take note of pieces that ended; return whether there were any."""

    def wait(self, seconds: float) -> None:
        """Wait until the engine has come along, or for so long."""


Load = Callable[[list[Delivery], int, Pace], Turn]
"""Makes a shipment of deliveries, with an estimate of their bytes."""


class Outbox:
    """The deliveries that wait for one lane. All but ``_posted`` belongs to the lane's thread."""

    def __init__(self, lane: Lane, page_bytes: int, pace: Pace) -> None:
        self.lane = lane
        self._page_bytes = page_bytes
        self._posted: deque[tuple[Delivery, Load]] = deque()
        self._waiting: list[tuple[Delivery, Load]] = []
        self._under_way: list[tuple[Turn, set[RoomId]]] = []
        self._pace = pace
        self._oldest_next = False

    def post(self, delivery: Delivery, load: Load) -> None:
        """Have the lane ship a delivery, with others that wait; refuses it if the lane is closed."""
        self._posted.append((delivery, load))
        if not self.lane.put(self._serve):
            # An earlier job of the closing lane may have taken it along.
            with suppress(ValueError):
                self._posted.remove((delivery, load))
                delivery.refuse()

    def _serve(self) -> None:
        """Ship all that waits, and what comes meanwhile."""
        while True:
            self._load()
            if not self._under_way:
                return
            turns = [turn for turn, _ in self._under_way]
            if len(turns) == 1:
                if self._step(turns[0], alone=True) is not Progress.MADE:
                    turns[0].wait(WHILE)
            else:
                self._take_turns(turns)
            self._under_way = [pair for pair in self._under_way if not pair[0].ended]

    def _take_turns(self, turns: list[Turn]) -> None:
        least = min(turns, key=lambda turn: turn.left)
        first, second = (turns[0], least) if self._oldest_next else (least, turns[0])
        progress = self._step(first)
        # What lacks budget is passed by nobody, or larger ones would take whatever comes free.
        self._oldest_next = progress is Progress.MADE and first is least
        if progress is Progress.ENGINE_BUSY and second is not first:
            progress = self._step(second)
        # The others only take note of what landed, which may be the budget that is lacked.
        landed = [turn.look() for turn in turns] if progress is not Progress.MADE else [True]
        if not any(landed):
            least.wait(MOMENT)

    def _step(self, turn: Turn, *, alone: bool = False) -> Progress:
        """Have a shipment go on; a defect in one must not stop those beside it."""
        try:
            return turn.step(alone=alone)
        # It reports its own failures; what escapes is a defect, and its rooms meet their deadlines.
        except Exception:
            _log.exception("a shipment on a lane failed")
            self._under_way = [pair for pair in self._under_way if pair[0] is not turn]
            return Progress.MADE

    def _load(self) -> None:
        """Make shipments of what waits, but not of a room that is under way already."""
        while self._posted:
            self._waiting.append(self._posted.popleft())
        if not self._waiting:
            return
        busy = set[RoomId]().union(*(rooms for _, rooms in self._under_way))
        waiting, self._waiting = self._waiting, []
        small: list[tuple[Delivery, Load]] = []
        shared = 0
        for delivery, load in waiting:
            room, size = delivery.chunk.room, len(delivery.chunk.pages) * self._page_bytes
            if room in busy:
                self._waiting.append((delivery, load))
            elif size < SHARED_BYTES:
                small.append((delivery, load))
                shared += size
                if shared >= SHARED_BYTES:
                    self._begin(small, shared)
                    busy.update(d.chunk.room for d, _ in small)
                    small, shared = [], 0
            elif any(d.chunk.room == room for d, _ in small):
                self._waiting.append((delivery, load))
                busy.add(room)
            else:
                self._begin([(delivery, load)], size)
                busy.add(room)
        if small:
            self._begin(small, shared)

    def _begin(self, together: list[tuple[Delivery, Load]], nbytes: int) -> None:
        deliveries = [delivery for delivery, _ in together]
        turn = together[0][1](deliveries, nbytes, self._pace)
        self._under_way.append((turn, {delivery.chunk.room for delivery in deliveries}))
