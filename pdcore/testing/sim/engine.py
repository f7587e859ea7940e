"""What copies pages: late, in part, never, or after it said that it failed."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

import attrs

from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Generation
from pdcore.protocol.actions import Revoke, Ship
from pdcore.protocol.chunk import DeliveryId
from pdcore.protocol.stimuli import DeliveryDrained, DeliveryEnded, WriterSilent
from pdcore.testing.sim.clock import Clock
from pdcore.testing.sim.faults import Faults
from pdcore.testing.sim.packed import PackedWrites

if TYPE_CHECKING:
    from pdcore.testing.sim.node import SimulatedRank

__all__ = ["Engine"]

FAILED = KVTransferError(FailureCode.ENGINE, "the simulated engine failed", "a seed says so", "look at it")
GIVEN_UP = KVTransferError(FailureCode.ABORTED, "the request had ended before it was sent", "-", "-")


@attrs.define(eq=False)
class PagesInFlight:
    """A delivery that the engine has: how many pages have yet to land, and whether it may go on at all."""

    node: SimulatedRank
    target: SimulatedRank
    ship: Ship
    left: int
    ended: bool = False
    stopped: bool = False


class Engine:
    """Writes page by page. A writer that was revoked, or whose process has ended, writes no more."""

    def __init__(self, clock: Clock, chance: random.Random, faults: Faults) -> None:
        self._clock, self._chance, self.faults = clock, chance, faults
        self._flights: dict[tuple[int, DeliveryId], PagesInFlight] = {}
        self._revoked: dict[tuple[int, int], Generation] = {}
        """Up to which rooms of a node's life another one may not write."""
        self.packed: PackedWrites = PackedWrites(clock, chance, self._revoked)
        self.copied = 0

    def ship(self, node: SimulatedRank, target: SimulatedRank | None, ship: Ship) -> None:
        """Take a chunk."""
        chance, faults = self._chance, self.faults
        if target is None:
            node.feed(DeliveryEnded(ship.delivery, FAILED))
            node.feed(DeliveryDrained(ship.delivery))
            return
        slots = node.slots.pairs.get(ship.route)
        if slots is not None and (node.world.always_packed or chance.random() < 0.5):
            self.packed.ship(node, target, slots, ship)
            return
        flight = PagesInFlight(node, target, ship, len(ship.chunk.pages))
        self._flights[node.life, ship.delivery] = flight
        flight.stopped = ship.wanted.generation <= self._revoked.get((target.life, node.life), 0)
        draw, seconds = chance.random(), 0.0005 + chance.expovariate(500.0)
        if draw < faults.hang:
            seconds += chance.expovariate(0.3)
        elif draw < faults.hang + faults.late:
            self._clock.after(seconds, partial(self._end, flight, FAILED))
            seconds += chance.expovariate(1.0)
        elif draw < faults.hang + faults.late + faults.fail:
            flight.stopped = flight.stopped or chance.random() < 0.5
            self._clock.after(seconds, partial(self._end, flight, FAILED))
        self._clock.after(seconds, partial(self._land, flight))

    def cancel(self, node: SimulatedRank, generation: Generation) -> None:
        """Submit nothing more of a room; what is on its way lands."""
        self.packed.cancel(node, generation)
        for flight in [f for f in self._flights.values() if f.node is node]:
            if flight.ship.generation == generation and not flight.ended:
                self._end(flight, GIVEN_UP)

    def revoke(self, node: SimulatedRank, revoke: Revoke) -> None:
        """Have a writer write no more to rooms up to a generation, and prove it a moment later."""
        self.packed.revoke(node, revoke)
        for flight in self._flights.values():
            if flight.target is node and flight.node.identity == revoke.identity:
                flight.stopped = flight.stopped or flight.ship.wanted.generation <= revoke.upto
        writer = int(revoke.identity.incarnation, 16)
        self._revoked[node.life, writer] = max(
            revoke.upto, self._revoked.get((node.life, writer), revoke.upto)
        )
        silent = WriterSilent(revoke.identity, revoke.upto)
        self._clock.after(0.01 * self._chance.random(), partial(node.feed, silent))

    def dies(self, node: SimulatedRank) -> None:
        """A process has ended: nothing of it moves any more."""
        self.packed.dies(node)
        for flight in self._flights.values():
            if flight.node is node or flight.target is node:
                flight.stopped = True

    def _land(self, flight: PagesInFlight) -> None:
        """Copy what is left, a page after another, then end."""
        node, ship = flight.node, flight.ship
        if not node.alive:
            self._flights.pop((node.life, ship.delivery), None)
            return
        if flight.left and not flight.stopped:
            at = len(ship.chunk.pages) - flight.left
            node.copies(flight.target, ship, at)
            self.copied += 1
            flight.left -= 1
            if flight.left:
                self._clock.after(0.0002 * self._chance.random(), partial(self._land, flight))
                return
        if not flight.ended:
            self._end(flight, FAILED if flight.left else None)
        self._flights.pop((node.life, ship.delivery), None)
        node.feed(DeliveryDrained(ship.delivery))

    def _end(self, flight: PagesInFlight, failure: KVTransferError | None) -> None:
        if not flight.ended and flight.node.alive:
            flight.ended = True
            flight.node.feed(DeliveryEnded(flight.ship.delivery, failure))
