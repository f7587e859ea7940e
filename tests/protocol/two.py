"""Two machines, one that sends and one that receives, whose messages arrive when a test says so."""

from __future__ import annotations

from collections import deque

import attrs
import numpy as np

from pdcore.errors import FailureCode, KVTransferError
from pdcore.layout.kv import KVLayout
from pdcore.model import Generation, Incarnation, KVPoll, PeerIdentity, Role, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.topology import Topology
from pdcore.protocol import actions as a
from pdcore.protocol import stimuli as s
from pdcore.protocol.groups import GroupKey, Member
from pdcore.protocol.machine import Machine, Settings
from pdcore.protocol.peer import Facts, Fit
from pdcore.protocol.room import Room
from pdcore.wire import Message, RequestMetadata, Route

LAYOUT = KVLayout.heads(layers=range(1), kv_heads=1, head_dim=8, page_size=1, num_pages=1)
GROUP = GroupKey("bootstrap", 0)
GIVEN_UP = KVTransferError(FailureCode.ABORTED, "given up", "a test", "-")
LATENCY = 0.001
LONG = 300.0


@attrs.define(eq=False)
class One:
    """One machine, the messages that it has posted and nobody has got, and what nobody has carried out."""

    name: str
    description: PeerDescription
    machine: Machine
    posted: deque[tuple[Route, Message]] = attrs.field(factory=deque)
    todo: deque[a.Action] = attrs.field(factory=deque)
    held: list[a.Action] = attrs.field(factory=list)
    dialled: dict[str, Route] = attrs.field(factory=dict)

    @property
    def identity(self) -> PeerIdentity:
        return PeerIdentity(self.description.role, self.description.incarnation, self.description.address)

    @property
    def route(self) -> Route:
        return Route(self.name.encode())

    def to(self, other: One) -> Route:
        """The route by which this one knows another."""
        return self.dialled.get(other.name, other.route)


def one(name: str, role: Role, number: int, tp: tuple[int, int] = (1, 0), *asking: int) -> One:
    """Return a rank of a group of so many by TP, the manieth; of a group that receives, ``asking`` ask it."""
    incarnation = Incarnation(f"{number:032x}")
    topology, facts = Topology(tp_size=tp[0], tp_rank=tp[1]), Facts(asking or (0,))
    description = PeerDescription(
        role, incarnation, name, "0", "sim", "", topology, LAYOUT, (), None, 0, (), b"", b"",
        max_message_bytes=2**20,
    )  # fmt: skip
    return One(name, description, Machine(description, Fit(lambda _: facts), Settings()))


@attrs.define(eq=False)
class Handle:
    """One room on one side."""

    two: Two
    one: One
    generation: Generation
    room: Room

    def feed(self, stimulus: s.Stimulus) -> None:
        self.two.feed(self.one, stimulus)

    def clear(self) -> None:
        self.feed(s.GiveUp(self.generation, GIVEN_UP))
        self.feed(s.Clear(self.generation))

    def abort(self) -> None:
        self.feed(s.GiveUp(self.generation, GIVEN_UP))

    @property
    def failed(self) -> bool:
        return self.room.status is KVPoll.FAILED

    @property
    def succeeded(self) -> bool:
        return self.room.status is KVPoll.SUCCESS


class Two:
    """A prefill rank and decode ranks of as many workers; time passes by :meth:`wait` alone.

    What is of a kind in ``holding`` is not carried out, but held.
    """

    def __init__(self) -> None:
        self.now = 100.0
        self.holding: set[type] = set()
        self.prefill = one("prefill", Role.PREFILL, 1)
        self.decode = one("decode", Role.DECODE, 2)
        self.other = one("other", Role.DECODE, 3)
        self._generations = 0

    def feed(self, who: One, stimulus: s.Stimulus) -> None:
        who.todo.extend(who.machine.handle(stimulus, self.now))
        while who.todo:
            self._carry(who, who.todo.popleft())

    def _carry(self, who: One, do: a.Action) -> None:
        if type(do) in self.holding:
            who.held.append(do)
        elif isinstance(do, a.Post):
            who.posted.append((do.route, do.message))
        elif isinstance(do, a.Dial):
            who.dialled[do.identity.address] = do.route
        elif isinstance(do, a.Find):
            there = self.prefill
            self.feed(who, s.GroupFound(do.key, (Member(there.identity, 0),)))
        elif isinstance(do, a.Connect | a.Admit):
            self.feed(who, s.PeerConnected(do.route, do.identity))
        elif isinstance(do, a.Ship):
            self.arrive(who, do)

    def arrive(self, who: One, do: a.Ship) -> None:
        """All bytes of a delivery have arrived."""
        self.feed(who, s.DeliveryEnded(do.delivery))
        self.feed(who, s.DeliveryDrained(do.delivery))

    def settle(self) -> None:
        """Let all messages arrive, a moment later each."""
        everybody = {one.route: one for one in (self.prefill, self.decode, self.other)}
        while any(one.posted for one in everybody.values()):
            self.now += LATENCY
            for who in everybody.values():
                posted, who.posted = who.posted, deque()
                for route, message in posted:
                    there = everybody[Route(route.partition(b"#")[0])]
                    self.feed(there, s.Heard(there.to(who), message))

    def wait(self, seconds: float) -> None:
        """Let time pass, with what arrives meanwhile."""
        until = self.now + seconds
        while self.now < until:
            self.settle()
            self.now += 0.05
            for who in (self.prefill, self.decode, self.other):
                self.feed(who, s.Tick())
        self.settle()

    def number(self) -> Generation:
        self._generations += 1
        return Generation(self._generations)

    def offered(self, room: RoomId) -> Handle:
        """A room whose pages are handed in on prefill."""
        generation = self.number()
        self.feed(self.prefill, s.OpenSend(room, generation, self.now + LONG))
        sending = self.prefill.machine.sending.rooms[generation]
        handle = Handle(self, self.prefill, generation, sending)
        handle.feed(s.AnnouncePages(generation, 1, None, 0))
        if not handle.failed:
            handle.feed(s.Supply(generation, np.array([3])))
        return handle

    def opened(self, room: RoomId, worker: One | None = None) -> Handle:
        """A room that decode has open and has not asked for."""
        who, generation = worker or self.decode, self.number()
        self.feed(who, s.OpenReceive(room, generation, self.now + LONG, GROUP))
        handle = Handle(self, who, generation, who.machine.receiving.rooms[generation])
        handle.feed(s.Choose(generation, GROUP))
        return handle

    def asked(self, room: RoomId, worker: One | None = None) -> Handle:
        """A room that decode asks for."""
        handle = self.opened(room, worker)
        self.place(handle)
        return handle

    def place(self, handle: Handle) -> None:
        wanted = RequestMetadata(handle.room.room, handle.generation, np.array([5]), None, (), 0, 0.0)
        handle.feed(s.Place(handle.generation, wanted))
