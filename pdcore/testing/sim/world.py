"""A world of one seed: nodes, what goes wrong between them, and what must hold after every step."""

from __future__ import annotations

import random
from functools import partial

from pdcore.errors import FailureCode, KVTransferError
from pdcore.layout.staging import StagingLayout
from pdcore.model import PeerIdentity, Role
from pdcore.protocol import stimuli as s
from pdcore.protocol.actions import Revoke
from pdcore.protocol.groups import GroupKey, Member
from pdcore.protocol.send.send_room import SendRoom
from pdcore.testing.sim.clock import Clock
from pdcore.testing.sim.engine import Engine
from pdcore.testing.sim.faults import Faults
from pdcore.testing.sim.memory import ViolationError
from pdcore.testing.sim.network import NOTICED, Network
from pdcore.testing.sim.node import SimulatedRank
from pdcore.testing.sim.packed import SLOTS
from pdcore.testing.sim.requests import Request, Side
from pdcore.testing.sim.router import Router
from pdcore.testing.sim.shape import Mapping, Shape
from pdcore.wire import Message, Route

__all__ = ["World"]

TICK = 0.2
IDLE_TICK, IDLE_TICKS = 2.0, 10
"""How often it ticks where nothing is under way."""
SPARE_RINGS = 8
"""Rings of a rank beside one for each peer: for peers that are lost, and have not paired again."""
TRIES = 5
"""Requests within which two groups find together again, of which the first may meet what is stale."""
FORGOTTEN = 62.0
"""Seconds after which nothing is remembered of what was lost."""
LONGEST = 30.0
"""Seconds within which some request must end."""
REFUSED = KVTransferError(FailureCode.ENGINE, "the simulated engine cannot connect", "a seed says so", "-")


class World:
    """Runs until ``rooms`` requests are over and nothing is left of them.

    Raises:
        ViolationError: with what does not hold.
    """

    def __init__(self, seed: int, rooms: int) -> None:
        self.chance = chance = random.Random(seed)  # noqa: S311 - a schedule, no secret
        self.faults = Faults.drawn(chance)
        self.shape = Shape(chance.choice((1, 1, 3)), chance.choice((1, 1, 3)), chance.choice(tuple(Mapping)))
        self.rows, self.verify = chance.random() < 0.5, chance.random() < 0.2
        self.reuse = chance.random() < 0.2
        self.provable = chance.random() < 0.6
        kind = chance.choice(("direct", "direct", "either", "packed"))
        self.always_packed = kind == "packed"
        peers = self.shape.prefills * self.shape.mapping.prefill
        rings = peers + SPARE_RINGS if self.always_packed else chance.randint(1, peers)
        self.staging = None if kind == "direct" else StagingLayout(rings, SLOTS, 4096, self.always_packed)
        self.clock = Clock()
        self.network = Network(self.clock, chance, self.faults)
        self.engine: Engine = Engine(self.clock, chance, self.faults)
        self.nodes: dict[tuple[Role, int, int], SimulatedRank] = {}
        self.groups: dict[tuple[Role, int], list[SimulatedRank]] = {}
        self.by_route: dict[Route, SimulatedRank] = {}
        self._lives = self._ticks = 0
        self._tick_after = TICK
        at_once = chance.choice((1, 4, 16))
        self._pages = at_once * 8
        for role, groups in ((Role.PREFILL, self.shape.prefills), (Role.DECODE, self.shape.decodes)):
            for group in range(groups):
                for rank in range(self.shape.mapping.ranks(role)):
                    self._start(role, group, rank)
        self.router = Router(self, chance, rooms, at_once)
        self.clock.after(chance.random(), self._misfortune)
        self.clock.after(TICK * chance.random(), self._tick)

    def run(self) -> None:
        """Run to the end."""
        self._go_on_until_idle()
        self._heal()
        self._pass(2 * NOTICED)  # what was cut before is noticed
        self._prove_progress()
        self._pass(FORGOTTEN)
        self._nothing_is_left()

    def _pass(self, seconds: float) -> None:
        until, self._tick_after = self.clock.now + seconds, IDLE_TICK
        while self.clock.now < until and self.clock.step():
            pass
        self._tick_after = TICK
        self._tick()

    def _go_on_until_idle(self) -> None:
        router, clock = self.router, self.clock
        while router.left > 0 or router.under_way:
            if clock.now > router.last_end + LONGEST or not clock.step():
                raise ViolationError(f"{router.under_way} requests are under way, and nothing goes on")

    def _prove_progress(self) -> None:
        """Now that nothing goes wrong any more, every pair of groups serves a request, and pairs by it."""
        for prefill in range(self.shape.prefills):
            for decode in range(self.shape.decodes):
                for _ in range(TRIES):
                    failures = self.router.failures
                    self.router.ask(self.groups[Role.PREFILL, prefill], self.groups[Role.DECODE, decode])
                    self._go_on_until_idle()
                    if self.router.failures == failures:
                        break
                else:
                    raise ViolationError(
                        f"groups {prefill} and {decode} serve no request any more (invariant 8)"
                    )

    # --- what nodes ask ----------------------------------------------------------------------

    def at(self, route: Route) -> SimulatedRank | None:
        """Return who lives at a route now."""
        return self.by_route.get(route)

    def post(self, node: SimulatedRank, route: Route, message: Message) -> None:
        """Send a message to whoever is at a route, over the connection that there is now."""
        target = self.by_route.get(Route(route.partition(b"#")[0]))
        if target is not None and (node.sends or node.connection(target) == route):
            self.network.send(node, target, message, target.connection(node))

    def find(self, node: SimulatedRank, key: GroupKey) -> None:
        """Look a prefill group up."""
        self.clock.after(0.005 * self.chance.random(), partial(self._found, node, key))

    def connect(self, node: SimulatedRank, route: Route, identity: PeerIdentity) -> None:
        """Connect an engine."""
        fails = self.chance.random() < self.faults.fail / 4
        what = s.PeerFailed(route, identity, REFUSED) if fails else s.PeerConnected(route, identity)
        self.clock.after(0.003 * self.chance.random(), partial(self._connected, node, route, what))

    def _connected(self, node: SimulatedRank, route: Route, what: s.PeerConnected | s.PeerFailed) -> None:
        node.feed(what)
        if node.alive and node.sends:
            self.engine.packed.paired(node, route)

    def revoke(self, node: SimulatedRank, revoke: Revoke) -> None:
        """Prove that a lost writer writes no more: by the engine, or once its process has ended."""
        if not node.alive:
            return
        if self.provable or not any(n.identity == revoke.identity for n in self.nodes.values()):
            self.engine.revoke(node, revoke)
        elif node.machine.peers.rings.waits_for(revoke.identity) or any(
            revoke.identity in room.writers for room in node.machine.receiving.rooms.values()
        ):
            self.clock.after(1.0, partial(self.revoke, node, revoke))

    def choose(self) -> tuple[list[SimulatedRank], list[SimulatedRank]]:
        """Return the nodes of a group of each side."""
        return (
            self.groups[Role.PREFILL, self.chance.randrange(self.shape.prefills)],
            self.groups[Role.DECODE, self.chance.randrange(self.shape.decodes)],
        )

    def succeeded(self, side: Side) -> None:
        """A room succeeded: on the side that receives, every byte must be there."""
        node, served = side.node, self._served(side)
        if served is side.request and side.request.misfit:
            raise ViolationError(f"{node.identity}: request {side.serial} succeeded, which nobody agreed on")
        if served is not side.request and not self.reuse:
            raise ViolationError(
                f"{node.identity}: request {side.serial} was sent to who asked for {served.serial}"
            )
        if node.sends:
            return
        if side.request.aux is not None and node.rows.get(side.request.aux) != side.serial:
            raise ViolationError(f"{node.identity}: request {side.serial} has no aux row (invariant 1)")
        for logical, page in enumerate(side.pages):
            for sender in self.shape.mapping.senders(node.rank):
                found = node.memory.content[page].get(sender)
                if found != (side.serial, logical):
                    raise ViolationError(
                        f"{node.identity}: request {side.serial} succeeded, but page {logical} holds {found} "
                        "(invariant 1)"
                    )

    def _served(self, side: Side) -> Request:
        """Return the request that a room was sent for: where ids come again at once, that may be an earlier
        one, which decode gave up a moment ago."""
        promised = side.room.promised.values() if isinstance(side.room, SendRoom) else ()
        for route, generation, _ in promised:
            node = self.by_route.get(route)
            if node is not None and node.sides[generation].request is not side.request:
                return node.sides[generation].request
        return side.request

    # --- what goes wrong ---------------------------------------------------------------------

    def _misfortune(self) -> None:
        chance, nodes = self.chance, list(self.nodes.values())
        if chance.random() < self.faults.cut:
            one, other = chance.sample(nodes, 2)
            if one.sends is not other.sends:
                self.network.cut(one, other, chance.choice((0.0, 0.2, 4.0)))
        if chance.random() < self.faults.restart:
            self._restart(chance.choice(nodes))
        if self.router.left > 0 or self.router.under_way:
            self.clock.after(1.0, self._misfortune)

    def _restart(self, node: SimulatedRank) -> None:
        in_order = self.chance.random() < self.faults.closing
        if in_order:
            node.close()
            for side in node.sides.values():
                if not side.ended:
                    raise ViolationError(
                        f"{node.identity}: request {side.serial} outlives its side (invariant 6)"
                    )
        node.alive = False
        self.engine.dies(node)
        self.router.dies(node)
        del self.by_route[node.route]
        self._start(node.role, node.group, node.rank)
        for other in self.nodes.values():
            if other.sends is not node.sends:
                delay = NOTICED if in_order else self.chance.choice((0.01, NOTICED))
                self.clock.after(delay, partial(other.loses, node, "its process has ended"))

    def _heal(self) -> None:
        self.faults = self.network.faults = self.engine.faults = Faults(closing=1.0)

    def _start(self, role: Role, group: int, rank: int) -> None:
        self._lives += 1
        node = SimulatedRank(self, role, group, rank, self._lives, self._pages)
        self.nodes[role, group, rank] = self.by_route[node.route] = node
        self.groups.setdefault((role, group), [])[rank : rank + 1] = [node]

    def _tick(self) -> None:
        self._ticks += 1
        everybody = self._ticks % IDLE_TICKS == 0
        for node in list(self.nodes.values()):
            if everybody or node.busy:
                node.tick()
        self.clock.after(self._tick_after, partial(self._tick_again, self._ticks))

    def _tick_again(self, ticks: int) -> None:
        if ticks == self._ticks:
            self._tick()

    def _found(self, node: SimulatedRank, key: GroupKey) -> None:
        group = self.groups[Role.PREFILL, int(key.bootstrap.rpartition("-")[2])]
        members = [Member(n.identity, n.rank) for n in group]
        mapping = self.shape.mapping
        senders = tuple(members[rank] for rank in mapping.senders(node.rank))
        node.feed(s.GroupFound(key, senders, tuple(members[rank] for rank in mapping.others(node.rank))))

    def _nothing_is_left(self) -> None:
        for node in self.nodes.values():
            machine = node.machine
            left = {
                "rooms that send": len(machine.sending.rooms),
                "rooms that receive": len(machine.receiving.rooms),
                "early requests": len(machine.answers.early),
                "guests": len(machine.answers.guests),
                "slots that were handed over": len(machine.answers.handed),
                "slots": node.slots.out_of_use,
                "farewells": sum(machine.peers.dialled.owed(n.identity.address) for n in self.nodes.values()),
                "pages": self._pages - len(node.memory.free),
            }
            if any(left.values()):
                raise ViolationError(f"{node.identity}: left behind are {left} (invariant 7)")
