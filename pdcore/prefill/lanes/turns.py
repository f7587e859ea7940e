"""What waits for one lane, and in which turns it goes out: a short request never waits for a whole long one.

A large shipment goes out in pieces (``pace``). After each piece the lane looks at who
waits: one turn is for the shipment that has least left, the next for the oldest, so that neither starves
the other. The deliveries of one room keep their order.

Small deliveries are submitted by the control thread, once it has handled what has arrived, if the engine
takes them promptly: the fewer threads want the interpreter, the less each waits, and those that wait together
share an engine call. What is not over then is the lane's.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from functools import partial
from typing import Protocol

from pdcore.model import RoomId
from pdcore.prefill.lanes.delivery import Delivery
from pdcore.prefill.lanes.lane import Lane
from pdcore.prefill.lanes.pace import Pace

__all__ = ["Load", "Outbox", "Progress", "ShipmentInTurns", "Soon"]

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


class ShipmentInTurns(Protocol):
    """A shipment, as the lane drives it."""

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""

    @property
    def left(self) -> int:
        """Bytes that have not gone out, as far as is known."""

    def plan(self) -> None:
        """Find out what there is to do, unless that is known; ``left`` is exact then."""

    def step(self, *, alone: bool) -> Progress:
        """Go on by one piece at most; doesn't wait."""

    def look(self) -> bool:
        """Take note of pieces that ended; return whether there were any."""

    def wait(self, seconds: float) -> None:
        """Wait until the engine has come along, or for so long."""


Load = Callable[[list[Delivery], int, Pace], ShipmentInTurns]
"""Makes a shipment of deliveries, with an estimate of their bytes."""


Soon = Callable[[Callable[[], None]], None]
"""Has the control thread do something once it has handled what has arrived."""


class Outbox:
    """The deliveries that wait for one lane.

    Without ``soon`` the engine's ``write`` may take long, so that only the lane calls it. The condition
    guards ``_served`` (a thread is at work here; all but ``_posted`` belongs to it), ``_due`` (the control
    thread will be) and ``_closed``.
    """

    def __init__(self, lane: Lane, page_bytes: int, pace: Pace, soon: Soon | None) -> None:
        self.lane = lane
        self._page_bytes = page_bytes
        self._soon = soon
        self._posted: deque[tuple[Delivery, Load]] = deque()
        self._waiting: list[tuple[Delivery, Load]] = []
        self._under_way: list[tuple[ShipmentInTurns, set[RoomId]]] = []
        self._pace = pace
        self._oldest_next = False
        self._idle = threading.Condition()
        self._served = self._due = self._closed = False

    def post(self, delivery: Delivery, load: Load) -> None:
        """Have a delivery shipped with others that wait; refuses it if the lane is closed."""
        self._posted.append((delivery, load))
        if self._soon is None or self._size(delivery) >= SHARED_BYTES:
            self._leave_to_lane()
            return
        with self._idle:
            due, self._due = self._due, not self._closed
            closed = self._closed
        if closed:
            self._leave_to_lane()
        elif not due:
            self._soon(self._serve_here)

    def close(self, last: Callable[[], None] | None = None) -> None:
        """Let the lane end after what was posted, and then do something; idempotent.

        Nothing is shipped here once it has ended.
        """
        with self._idle:
            self._closed = True
        self.lane.put(partial(self._serve_last, last))
        self.lane.close()

    def _seize(self, *, lane: bool = False) -> bool:
        """Take this over, if nobody is at work here; False if it is closed, but for the ``lane`` itself."""
        with self._idle:
            if self._served or (self._closed and not lane):
                return False
            self._served = True
            return True

    def _release(self, *, here_again: bool = False) -> None:
        """Leave what is left, and what came meanwhile, to the control thread if it comes, or to the lane."""
        left = bool(self._waiting or self._under_way)
        with self._idle:
            due, closed = self._due, self._closed
            self._served, self._due = False, due or (here_again and not closed)
            self._idle.notify_all()
        if here_again and not closed:
            if not due and self._soon is not None:
                self._soon(self._serve_here)
        elif left or (self._posted and not due):
            self.lane.put(self._serve)  # one that is closed waits for this moment, to serve a last time

    def _leave_to_lane(self) -> None:
        with self._idle:
            if self._served and not self._closed:
                return  # who is at work looks again before it leaves
        if not self.lane.put(self._serve):
            # An earlier job of the closing lane may have taken it along.
            with suppress(IndexError):
                while True:
                    self._posted.popleft()[0].refuse()

    def _serve_here(self) -> None:
        """Submit what is small, on a thread that others wait for."""
        with self._idle:
            self._due = False
        if not self._seize():
            if self._closed:
                self._leave_to_lane()
            return
        untouched = False
        try:
            self._load()
            room = SHARED_BYTES
            later = []
            for pair in list(self._under_way):
                turn = pair[0]
                if turn.left >= 2 * SHARED_BYTES:
                    continue
                if room <= 0:
                    later.append(pair)
                elif self._plan(turn):
                    room -= turn.left
                    if turn.left < 2 * SHARED_BYTES:  # state comes on top of the pages
                        self._step(turn, alone=len(self._under_way) == 1)
            self._under_way = [pair for pair in self._under_way if not pair[0].ended]
            untouched = self._under_way == later != []
        finally:
            self._release(here_again=untouched)

    def _serve_last(self, last: Callable[[], None] | None) -> None:
        with self._idle:
            self._idle.wait_for(lambda: not self._served)
        self._serve()
        if last is not None:
            last()

    def _serve(self) -> None:
        """Ship all that waits, and what comes meanwhile; leaves it to who is at it, if somebody is."""
        if not self._seize(lane=True):
            return
        try:
            self._serve_all()
        finally:
            self._release()

    def _serve_all(self) -> None:
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

    def _take_turns(self, turns: list[ShipmentInTurns]) -> None:
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

    def _step(self, turn: ShipmentInTurns, *, alone: bool = False) -> Progress:
        """Have a shipment go on; a defect in one must not stop those beside it."""
        try:
            return turn.step(alone=alone)
        except Exception:
            self._drop(turn)
            return Progress.MADE

    def _plan(self, turn: ShipmentInTurns) -> bool:
        try:
            turn.plan()
        except Exception:
            self._drop(turn)
            return False
        return True

    def _drop(self, turn: ShipmentInTurns) -> None:
        """Forget one that raised: it reports its own failures, and what escapes is a defect. Its rooms meet
        their deadlines."""
        _log.exception("a shipment failed")
        self._under_way = [pair for pair in self._under_way if pair[0] is not turn]

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
            room, size = delivery.chunk.room, self._size(delivery)
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

    def _size(self, delivery: Delivery) -> int:
        """Estimate the bytes of a delivery."""
        return len(delivery.chunk.pages) * self._page_bytes
