"""One chunk of a request on its way to one peer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from pdcore.contract.regions import WriteBatch
from pdcore.errors import FailureCode, KVTransferError, PDCoreError, PlanError
from pdcore.events import (
    ChunkDrained,
    ChunkLanded,
    ChunkQuarantined,
    ChunkSubmitted,
    Events,
    Node,
    Stage,
    stage,
)
from pdcore.model import Deadline, Generation, PeerIdentity, RoomId
from pdcore.prefill.lanes.failures import given_up
from pdcore.protocol.chunk import DeliveryId, TransferKVChunk

__all__ = ["Delivery", "all_drained"]


class Delivery:
    """One chunk for one peer, how to plan it, and whom to tell.

    ``on_end(error)`` is called once; ``on_drained`` too, when no byte of it can move any more, with its
    ``number`` and those of others that drained together: before its end, if nobody wants it and nobody reads
    it. ``hand(slot, piece)``: a slot of the peer has a piece of it; it went out in so many ``slots``.

    ``hold`` keeps its pages from being given back while somebody reads them: the engine, until it is drained,
    or who packs them. The lock guards ``_held``, ``_unwanted`` and ``_told``.
    """

    def __init__(
        self,
        number: DeliveryId,
        chunk: TransferKVChunk,
        peer: PeerIdentity,
        plan: Callable[[], list[WriteBatch]],
        deadline: Deadline,
        still_wanted: Callable[[], bool],
        on_end: Callable[[KVTransferError | None], None],
        on_drained: Callable[[Sequence[DeliveryId]], None],
        hand: Callable[[int, WriteBatch], None],
        events: Events,
    ) -> None:
        self.number = number
        self.chunk = chunk
        self.deadline = deadline
        self.nbytes = 0
        self.entries = 0
        self.plan_seconds = 0.0
        self.still_wanted = still_wanted
        self.on_drained = on_drained
        self.hand = hand
        self.slots = 0
        self._events = events
        self._planned_at = 0.0
        self._suspect = False
        self.peer = peer
        self._plan = plan
        self._on_end = on_end
        self._lock = threading.Lock()
        self._held = self._unwanted = self._told = False

    def plan(self) -> list[WriteBatch]:
        """Return the copies, and hold it; none if it ended here, unwanted or impossible."""
        if not self.still_wanted() or not self.hold():
            self.refuse()
            return []
        planning = stage(self._events, Stage.PLAN, room=self.chunk.room, peer=self.peer)
        try:
            with planning:
                batches = self._plan()
        # A third party may have planned the state: whatever it raises, the room must end.
        except Exception as error:
            self.end(error)
            all_drained([self])
            return []
        self.nbytes, self.entries = sum(b.nbytes for b in batches), sum(map(len, batches))
        self.plan_seconds = planning.seconds
        self._planned_at = time.monotonic()
        if self._events.on:
            chunk = self.chunk
            self._events.emit(ChunkSubmitted(*self._step, len(chunk.pages), self.entries, chunk.is_last))
        return batches

    def hold(self) -> bool:
        """Read its pages from now on; False: nobody wants it any more, and they may be another's."""
        with self._lock:
            self._held = not self._unwanted
            return self._held

    def loosen(self) -> None:
        """Its pages are read no more, for now: without it, until it is drained."""
        with self._lock:
            self._held, free = False, self._unwanted
        if free:
            all_drained([self])

    def let_go(self) -> None:
        """Nobody wants it any more: it is drained, unless its pages are being read."""
        with self._lock:
            self._unwanted, free = True, not self._held
        if free:
            all_drained([self])

    def end(self, error: Exception | None) -> None:
        """Report the end, with the error in this room's words."""
        if error is None and self._events.on:
            took = time.monotonic() - self._planned_at
            self._events.emit(ChunkLanded(*self._step, took, self.slots))
        self._on_end(None if error is None else self._mapped(error))

    def refuse(self) -> None:
        """End it without having tried."""
        self.end(given_up())
        all_drained([self])

    def quarantined(self) -> None:
        """It has ended, but its bytes may still land."""
        self._suspect = True
        if self._events.on:
            self._events.emit(ChunkQuarantined(*self._step))

    def drained(self) -> bool:
        """No byte of it can move any more: tell who follows it, if it was in quarantine; False: again."""
        with self._lock:
            known, self._told = self._told, True
        if not known and self._suspect and self._events.on:
            self._events.emit(ChunkDrained(*self._step, time.monotonic() - self._planned_at))
        return not known

    @property
    def _step(self) -> tuple[Node, RoomId, Generation, PeerIdentity, int]:
        return self._events.node, self.chunk.room, self.chunk.generation, self.peer, self.nbytes

    def _mapped(self, error: Exception) -> KVTransferError:
        where = f"room {self.chunk.room} to {self.peer}"
        if isinstance(error, KVTransferError):
            return KVTransferError(error.code, f"{error.happened} ({where})", error.there_is, error.to_do)
        if isinstance(error, PDCoreError):
            code = FailureCode.PLAN if isinstance(error, PlanError) else FailureCode.ENGINE
            return KVTransferError(code, f"{error.happened} ({where})", error.there_is, error.to_do)
        return KVTransferError(
            FailureCode.ENGINE,
            f"the backend raised ({where})",
            repr(error),
            "look at the engine's log; report it to the backend's author",
        )


def all_drained(together: Sequence[Delivery]) -> None:
    """No byte of deliveries that went out together can move any more: report those not yet reported."""
    numbers = [delivery.number for delivery in together if delivery.drained()]
    if numbers:
        together[0].on_drained(numbers)
