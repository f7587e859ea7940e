"""One life of one rank: its machine, its memory, and what its machine wants done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from pdcore.errors import FailureCode, KVTransferError, RoomError
from pdcore.layout.kv import KVLayout
from pdcore.model import Generation, Incarnation, PeerIdentity, Role, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.protocol import actions as a
from pdcore.protocol import stimuli as s
from pdcore.protocol.machine import Machine, Settings
from pdcore.protocol.peer import Facts, Fit
from pdcore.testing.sim.memory import Memory, ViolationError
from pdcore.testing.sim.packed import SlotsOfRank
from pdcore.testing.sim.requests import Side
from pdcore.wire import Bye, Message, Route

if TYPE_CHECKING:
    from pdcore.testing.sim.world import World

__all__ = ["SimulatedRank"]

LAYOUT = KVLayout.heads(layers=range(1), kv_heads=1, head_dim=8, page_size=1, num_pages=1)
TICK = s.Tick()
NO_ROOM = 10**6
"""No request has this id."""
SHUT_DOWN = KVTransferError(FailureCode.ABORTED, "the side shut down", "close() was called", "-")
WRONG_ROW = KVTransferError(FailureCode.AUX, "the slot holds another row", "-", "-")


class SimulatedRank:
    """``life`` is unique over all nodes and their lives. What the machine wants is done in order.

    ``sends``: it is a prefill rank.
    """

    def __init__(self, world: World, role: Role, group: int, rank: int, life: int, pages: int) -> None:
        self.world, self.role, self.group, self.rank, self.life = world, role, group, rank, life
        self._clock, self.sends = world.clock, role is Role.PREFILL
        self.alive, self.closing = True, False
        address = f"{role.value}-{group}-{rank}"
        self.route = Route((address if self.sends else f"{address}-{life}").encode())
        incarnation = Incarnation(f"{life:032x}")
        self.identity = PeerIdentity(role, incarnation, address)
        self.description = PeerDescription(
            role, incarnation, address, "0", "sim", "", world.shape.mapping.topology(role, rank), LAYOUT, (),
            None, 0, (), b"", b"", max_message_bytes=2**20, staging=world.staging,
        )  # fmt: skip
        settings = Settings(pairing=5.0, interval=1.0, verify=world.verify)
        self.machine = Machine(self.description, Fit(self._introduce), settings)
        self.memory = Memory(f"{address}/{life}", pages)
        self.sides: dict[Generation, Side] = {}
        self.rows: dict[int, int] = {}
        self.slots = SlotsOfRank()
        self.dialled: dict[str, Route] = {}
        """The connection to each address; what comes over an earlier one is lost."""
        self.paired_at: dict[PeerIdentity, float] = {}
        self.heard_of: dict[Route, int] = {}
        self._generations = 0
        self._todo: deque[a.Action] = deque()
        self._doing = False

    def feed(self, stimulus: s.Stimulus) -> None:
        """Have the machine handle something, and do what it wants, after what it wanted before."""
        if not self.alive:
            return
        actions = self.machine.handle(stimulus, self._clock.now)
        if not actions:
            return
        if self._doing:
            self._todo.extend(actions)
            return
        self._doing, todo = True, self._todo
        try:
            for action in actions:
                CARRIERS[type(action)](self, action)
            while todo:
                action = todo.popleft()
                CARRIERS[type(action)](self, action)
        finally:
            self._doing = False

    def generation(self) -> Generation:
        """Return a number for the next room."""
        self._generations += 1
        return Generation(self._generations)

    def close(self) -> None:
        """End in order: every room ends, the engine is closed, and peers are told."""
        self.closing = True
        self.feed(s.Close(SHUT_DOWN))
        with suppress(RoomError):
            self.feed(s.OpenSend(RoomId(NO_ROOM), self.generation(), self._clock.now + 1.0))
            raise ViolationError(f"{self.identity}: a room was opened at a side that is closed (invariant 6)")
        self.world.engine.dies(self)
        bye = Bye(self.identity.incarnation, "it shut down in order", drained=True)
        for route in list(self.machine.peers.by_route):
            self.world.post(self, route, bye)

    # --- what reaches it ---------------------------------------------------------------------

    def hears(self, source: SimulatedRank, message: Message, over: Route) -> None:
        """Take a message of another node over a connection that is there, unless a later life of it was heard
        of."""
        if source.life < self.heard_of.get(source.route, 0):
            return
        self.heard_of[source.route] = source.life
        if self.connection(source) == over:
            self.feed(s.Heard(over, message))

    def connection(self, other: SimulatedRank) -> Route:
        """Return the route by which this node knows another one."""
        return self.dialled.get(other.identity.address, other.route)

    def loses(self, other: SimulatedRank, why: str) -> None:
        """Hear of another node no more."""
        self.feed(s.PeerGone(self.connection(other), why, other.identity))

    @property
    def busy(self) -> bool:
        """Whether the next tick may do more than forget."""
        sending, receiving, answers = self.machine.sending, self.machine.receiving, self.machine.answers
        return bool(sending.rooms or receiving.rooms or answers.early or answers.guests or answers.handed)

    def tick(self) -> None:
        """Let time pass, and look whether a room waits in vain: past its deadline, or for who is lost."""
        self.feed(TICK)
        machine, now = self.machine, self._clock.now
        peers = machine.peers
        for sending in machine.sending.present.values():
            if not sending.over:
                if sending.deadline < now:
                    self._fail(f"room {sending.room} outlives its deadline")
                for d in sending.destinations:
                    if peers.by_route.get(d.peer.route) is not d.peer:
                        self._fail(f"room {sending.room} waits for a peer that is lost")
        for waiting in machine.receiving.present.values():
            if not waiting.over:
                if waiting.deadline < now:
                    self._fail(f"room {waiting.room} outlives its deadline")
                for identity in waiting.asked:
                    if peers.dialled.paired_with(identity) is None:
                        self._fail(f"room {waiting.room} waits for a peer that is lost")

    def _fail(self, what: str) -> None:
        raise ViolationError(f"{self.identity}: {what} (invariant 6)")

    def meets_again(self, other: SimulatedRank) -> None:
        """Be connected again."""
        if not self.sends:
            self.feed(s.Reconnected(self.connection(other)))

    def connects(self, do: a.Connect) -> None:
        """Have the engine connected to a rank that receives."""
        self.slots.connect(do)
        self.world.connect(self, do.route, do.identity)

    def copies(self, target: SimulatedRank, ship: a.Ship, at: int) -> None:
        """Have the engine copy one page of a chunk, as it is in memory now."""
        source, logical = int(ship.chunk.pages[at]), ship.chunk.start + at
        value = self.memory.content[source].get(0, (0, 0))
        side = target.sides[ship.wanted.generation]
        if logical >= len(ship.wanted.pages):
            raise ViolationError(f"{self.identity}: page {logical} of request {side.serial} is sent unasked")
        if target.alive:
            target.memory.write(int(ship.wanted.pages[logical]), side.serial, self.rank, value)

    # --- what its machine wants --------------------------------------------------------------

    def _introduce(self, there: PeerDescription) -> Facts:
        mapping = self.world.shape.mapping
        return mapping.facts(self.rank, there.topology.unique_rank, rows=self.world.rows)

    def _dial(self, do: a.Dial) -> None:
        self.dialled[do.identity.address] = do.route

    def _pair(self, do: a.Paired) -> None:
        self.paired_at[do.identity] = self.world.clock.now

    def _let_go(self, do: a.Lost) -> None:
        self.paired_at.pop(do.identity, None)
        self.slots.part(do.route)
        if self.dialled.get(do.identity.address) == do.route:
            del self.dialled[do.identity.address]

    def _watch(self, do: a.AwaitSource) -> None:
        self._clock.after(
            0.005 * self.world.chance.random(), partial(self.feed, s.SourceReady(do.generation))
        )

    def _write_row(self, do: a.WriteRow) -> None:
        self.rows[do.slot] = int(do.row)
        self.feed(s.RowWritten(do.generation))

    def _check_row(self, do: a.CheckRow) -> None:
        right = self.rows.get(do.slot) == self.sides[do.generation].serial
        self.feed(s.RowChecked(do.generation, None if right else WRONG_ROW))

    def _ended(self, do: a.Ended) -> None:
        side, room = self.sides[do.generation], self.machine.room(do.generation)
        if side.ended or room is None or not room.over:
            raise ViolationError(f"{self.identity}: a room ended that had ended, or had not")
        side.ended, side.ended_at = True, self._clock.now
        if room.failure is None:
            self.world.succeeded(side)
        self.world.router.ended(side, room.failure)
        if do.silent:
            self._fell_silent(do.generation)

    def _silent(self, do: a.Silent) -> None:
        self._fell_silent(do.generation)

    def _fell_silent(self, generation: Generation) -> None:
        side = self.sides[generation]
        if side.silent or not side.ended:
            raise ViolationError(f"{self.identity}: request {side.serial} is silent twice, or before its end")
        side.silent, side.silent_at = True, self._clock.now
        self.memory.release(side.pages, side.serial)
        self.world.router.silent(side)


CARRIERS: Mapping[type, Callable[[SimulatedRank, Any], object]] = {
    a.Post: lambda node, do: node.world.post(node, do.route, do.message),
    a.Ship: lambda node, do: node.world.engine.ship(node, node.world.at(do.route), do),
    a.Cancel: lambda node, do: node.world.engine.cancel(node, do.generation),
    a.AwaitSource: SimulatedRank._watch,
    a.Examine: lambda node, do: node.feed(s.Examined(do.generation)),
    a.Compare: lambda node, do: node.feed(s.Compared(do.generation, do.route, do.digests)),
    a.ReadRow: lambda node, do: node.feed(s.RowRead(do.generation, str(node.rows[do.slot]).encode())),
    a.WriteRow: SimulatedRank._write_row,
    a.CheckRow: SimulatedRank._check_row,
    a.Find: lambda node, do: node.world.find(node, do.key),
    a.Dial: SimulatedRank._dial,
    a.TurnedAway: lambda node, do: None,
    a.Paired: SimulatedRank._pair,
    a.Lost: SimulatedRank._let_go,
    a.Begun: lambda node, do: None,
    a.Promised: lambda node, do: None,
    a.Asked: lambda node, do: None,
    a.Connect: lambda node, do: node.connects(do),
    a.Admit: lambda node, do: node.world.connect(node, do.route, do.identity),
    a.Revoke: lambda node, do: node.world.revoke(node, do),
    a.FreeSlot: lambda node, do: node.world.engine.packed.free(node, do),
    a.Unpack: lambda node, do: node.world.engine.packed.unpack(node, do),
    a.Suspect: lambda node, do: node.feed(s.PeerGone(do.route, do.failure.there_is, do.identity)),
    a.Ended: SimulatedRank._ended,
    a.Silent: SimulatedRank._silent,
    a.Forget: lambda node, do: None,
}
"""What a node does of what its machine wants."""
