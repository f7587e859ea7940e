"""Bytes that go packed in a simulated world: slots on both sides, and writes that land late or never."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import attrs
import numpy as np

from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Generation, PeerIdentity
from pdcore.protocol.actions import Connect, FreeSlot, Revoke, Ship, Unpack
from pdcore.protocol.stimuli import BytesUnpacked, DeliveryDrained, DeliveryEnded, RingQuiet, SlotWritten
from pdcore.testing.sim.clock import Clock
from pdcore.testing.sim.faults import Faults
from pdcore.wire import Packed, Route

if TYPE_CHECKING:
    from pdcore.testing.sim.node import SimulatedRank

__all__ = ["PackedWrites", "SlotsOfRank"]

SLOTS, PIECE = 2, 2
"""Slots of a ring, and pages that one takes."""
LANE_IS_BUSY = 1.5
"""Seconds until bytes are taken out of a slot, at most: prefill has told of them again by then."""
FAILED = KVTransferError(FailureCode.ENGINE, "the simulated engine failed", "a seed says so", "look at it")

Content = tuple[int, tuple[int, int]]
"""Which rank wrote a page, and what."""


@attrs.define(eq=False)
class PairSlots:
    """The slots of a pair as prefill sees them: those that are ``free``, uses that were ``handed`` over by
    slot, and how many are in doubt. ``waiting`` are deliveries for which none is free."""

    route: Route
    identity: PeerIdentity
    ring: int
    free: list[int] = attrs.field(factory=lambda: list(range(SLOTS)))
    handed: dict[int, int] = attrs.field(factory=dict)
    in_doubt: int = 0
    waiting: deque[PackedDelivery] = attrs.field(factory=deque)
    tell: bool = False
    """Whether the peer, which has paired anew, is told when none is in doubt."""


@attrs.define(eq=False)
class SlotsOfRank:
    """What one rank has: slots of its pairs, and what was last written to its own by ring and number."""

    pairs: dict[Route, PairSlots] = attrs.field(factory=dict)
    earlier: defaultdict[PeerIdentity, list[PairSlots]] = attrs.field(factory=lambda: defaultdict(list))
    content: dict[tuple[int, int], list[Content]] = attrs.field(factory=dict)
    uses: int = 0

    def connect(self, do: Connect) -> None:
        """Have slots for a pair that is made, if its rank lends a ring."""
        if do.ring is not None:
            self.pairs[do.route] = PairSlots(do.route, do.identity, do.ring)

    def part(self, route: Route) -> None:
        """The pair is no more."""
        slots = self.pairs.pop(route, None)
        if slots is not None:
            self.earlier[slots.identity].append(slots)

    @property
    def out_of_use(self) -> int:
        """Slots of pairs that are neither free nor on their way."""
        return sum(SLOTS - len(slots.free) for slots in self.pairs.values())


@attrs.define(eq=False)
class PackedDelivery:
    """A delivery that goes packed, of which pages from ``at`` on are yet to go."""

    node: SimulatedRank
    target: SimulatedRank
    ship: Ship
    slots: PairSlots
    at: int = 0
    ended: bool = False


@attrs.define(eq=False)
class PackedWrite:
    """Some pages of it, in a slot."""

    delivery: PackedDelivery
    slot: int
    pages: int
    content: list[Content]
    stopped: bool = False


class PackedWrites:
    """Fills slots piece by piece, and writes each to the peer's, in time, late, or never.

    ``revoked``: up to which rooms of a node's life another one may not write, as the engine is told of it.
    """

    def __init__(
        self, clock: Clock, chance: random.Random, revoked: Mapping[tuple[int, int], Generation]
    ) -> None:
        self._clock, self._chance = clock, chance
        self._deliveries: list[PackedDelivery] = []
        self._writes: list[PackedWrite] = []
        self._revoked = revoked

    def ship(self, node: SimulatedRank, target: SimulatedRank, slots: PairSlots, ship: Ship) -> None:
        """Take a chunk."""
        delivery = PackedDelivery(node, target, ship, slots)
        self._deliveries.append(delivery)
        self._go_on(delivery)

    def cancel(self, node: SimulatedRank, generation: Generation) -> None:
        """Submit nothing more of a room: its pages are its own at once."""
        for delivery in [d for d in self._deliveries if d.node is node and d.ship.generation == generation]:
            self._end(delivery, FAILED)

    def free(self, node: SimulatedRank, do: FreeSlot) -> None:
        """A peer has taken what was in a slot."""
        slots = node.slots.pairs.get(do.route)
        if slots is not None and slots.identity == do.identity and slots.handed.get(do.slot) == do.number:
            del slots.handed[do.slot]
            self._give(slots, do.slot)

    def unpack(self, node: SimulatedRank, do: Unpack) -> None:
        """Take the bytes out of a slot, a moment later."""
        busy = not node.world.faults.loses_nothing and self._chance.random() < 0.2
        longest = LANE_IS_BUSY if busy else 0.002
        self._clock.after(longest * self._chance.random(), partial(self._unpack, node, do))

    def revoke(self, node: SimulatedRank, revoke: Revoke) -> None:
        """Nothing of a writer lands any more, of rooms up to a generation."""
        for write in self._writes:
            delivery = write.delivery
            mine = delivery.target is node and delivery.node.identity == revoke.identity
            write.stopped |= mine and delivery.ship.wanted.generation <= revoke.upto

    def dies(self, node: SimulatedRank) -> None:
        """A process has ended: nothing of it moves any more."""
        for write in self._writes:
            write.stopped |= node in (write.delivery.node, write.delivery.target)

    def paired(self, node: SimulatedRank, route: Route) -> None:
        """A rank has paired: it is told of rings that it lent before, once nothing can land in them."""
        now = node.slots.pairs.get(route)
        for slots in list(node.slots.earlier[now.identity]) if now is not None else ():
            if now is not None and slots.ring == now.ring:
                node.slots.earlier[now.identity].remove(slots)
            else:
                slots.tell = True
                self._tell_if_quiet(node, slots)

    # --- inside ------------------------------------------------------------------------------

    def _go_on(self, delivery: PackedDelivery) -> None:
        node, slots, ship = delivery.node, delivery.slots, delivery.ship
        if delivery.ended or not node.alive:
            return
        if delivery.at == len(ship.chunk.pages):
            self._end(delivery, None)
            return
        if not slots.free:
            slots.waiting.append(delivery)
            return
        slot = slots.free.pop(0)
        chosen = ship.chunk.pages[delivery.at : delivery.at + PIECE].tolist()
        content = [(node.rank, node.memory.content[page].get(0, (0, 0))) for page in chosen]
        write = PackedWrite(delivery, slot, len(chosen), content)
        write.stopped = ship.wanted.generation <= self._revoked.get((delivery.target.life, node.life), 0)
        self._writes.append(write)
        faults: Faults = node.world.faults
        draw, seconds = self._chance.random(), 0.0005 + self._chance.expovariate(500.0)
        if draw < faults.hang:
            seconds += self._chance.expovariate(0.3)
        elif draw < faults.hang + faults.late:
            self._clock.after(seconds, partial(self._end, delivery, FAILED))
            seconds += self._chance.expovariate(1.0)
        elif draw < faults.hang + faults.late + faults.fail:
            self._clock.after(seconds, partial(self._end, delivery, FAILED))
        self._clock.after(seconds, partial(self._land, write))

    def _land(self, write: PackedWrite) -> None:
        delivery, slots = write.delivery, write.delivery.slots
        node, target, ship = delivery.node, delivery.target, delivery.ship
        self._writes.remove(write)
        if not write.stopped and target.alive:
            target.slots.content[slots.ring, write.slot] = write.content
        if not node.alive:
            return
        if write.stopped and not delivery.ended:
            self._end(delivery, FAILED)
            self._give(slots, write.slot)
            return
        if delivery.ended:
            slots.in_doubt -= 1
            self._give(slots, write.slot)
            self._tell_if_quiet(node, slots)
            return
        first = ship.chunk.start + delivery.at
        offsets = ship.wanted.pages[first : first + write.pages]
        node.slots.uses += 1
        columns = np.zeros(1, np.int64), np.array([0, write.pages]), offsets, np.ones(write.pages, np.int64)
        wanted = ship.wanted
        packed = Packed(wanted.room, wanted.generation, write.slot, node.slots.uses, *columns)
        slots.handed[write.slot] = packed.number
        delivery.at += write.pages
        node.feed(SlotWritten(ship.delivery, ship.route, slots.identity, packed))
        self._go_on(delivery)

    def _end(self, delivery: PackedDelivery, failure: KVTransferError | None) -> None:
        """It is over, and drained: no byte of it can land in a page."""
        if delivery.ended or not delivery.node.alive:
            return
        delivery.ended = True
        self._deliveries.remove(delivery)
        delivery.slots.in_doubt += sum(write.delivery is delivery for write in self._writes)
        delivery.node.feed(DeliveryEnded(delivery.ship.delivery, failure))
        delivery.node.feed(DeliveryDrained(delivery.ship.delivery))

    def _give(self, slots: PairSlots, slot: int) -> None:
        slots.free.append(slot)
        while slots.free and slots.waiting:
            self._go_on(slots.waiting.popleft())

    def _tell_if_quiet(self, node: SimulatedRank, slots: PairSlots) -> None:
        if slots.tell and not slots.in_doubt:
            node.feed(RingQuiet(slots.route, slots.identity, slots.ring))

    def _unpack(self, node: SimulatedRank, do: Unpack) -> None:
        if not node.alive:
            return
        packed, side = do.packed, node.sides[do.generation]
        found = node.slots.content.get((do.ring, packed.slot), [])
        for page, (rank, value) in zip(packed.offsets.tolist(), found, strict=False):
            node.memory.write(page, side.serial, rank, value)
        node.feed(BytesUnpacked(do.generation, do.identity, packed))
