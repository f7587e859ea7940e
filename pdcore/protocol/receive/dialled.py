"""The ranks that this side has dialled, the names of the connections there, and what is yet to be said."""

from __future__ import annotations

from collections import OrderedDict

from pdcore.errors import KVTransferError
from pdcore.layout.staging import packs
from pdcore.model import Incarnation, PeerIdentity, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.protocol import words
from pdcore.protocol.peer import Farewell, RemoteRank, keep
from pdcore.protocol.receive.receive_room import ReceiveRoom
from pdcore.protocol.receive.rings import Rings
from pdcore.protocol.room import Room, Turn
from pdcore.wire import Bye, PairRequest, Route, overweight

__all__ = ["DialledRanks"]

LATELY = 2.0
"""Seconds that it may take until it is known that another life is there; and between two sweeps."""


class DialledRanks:
    """At most one rank by address. Each connection has a route of its own: what is said over it is said by
    who was dialled with it, and over an earlier one to the same address, by nobody.

    Who is lost knows nothing of the rooms that are given up for it, and whoever runs in its place may have
    been asked for them, and waits: the next that is dialled there is told, while they would have lasted. So
    it is with what was given up lately, in the belief that it knows: it may have been another life by then.
    Of an id that is opened again nobody waits for what was given up before.
    """

    def __init__(self, turn: Turn, ours: PeerDescription, rings: Rings) -> None:
        self._turn, self._ours, self._rings = turn, ours, rings
        self._at: dict[str, RemoteRank] = {}
        self._refused: OrderedDict[str, RemoteRank] = OrderedDict()
        self._lately: dict[RoomId, tuple[ReceiveRoom, KVTransferError]] = {}
        self._owed: dict[str, dict[RoomId, Farewell]] = {}
        self._connections = self._pairings = 0
        self._sweep_at = 0.0

    def at(self, address: str) -> RemoteRank | None:
        """Return who was dialled at an address, if it is not lost."""
        return self._at.get(address)

    def paired_with(self, identity: PeerIdentity) -> RemoteRank | None:
        """Return a process that is paired, perhaps anew."""
        peer = self._at.get(identity.address)
        return peer if peer is not None and peer.ready and peer.identity == identity else None

    def add(self, identity: PeerIdentity, rank: int, *, successor: bool = False) -> RemoteRank:
        """Return a rank that is to be dialled."""
        owed = list(self._owed.pop(identity.address, {}).values())
        peer = RemoteRank(self._route(identity), identity, rank, True, successor=successor, farewells=owed)
        self._at[identity.address] = peer
        return peer

    def ask(self, peer: RemoteRank, *, sends: bool) -> KVTransferError | None:
        """Ask a rank to pair; one that ``sends`` is lent a ring. Return why it cannot be asked, if so."""
        ours, rings, number = self._ours, self._rings, self._pairings + 1
        peer.ring = rings.lend() if sends else None
        if sends and peer.ring is None and packs(ours.staging, None):
            return words.no_ring(peer.identity, rings.total, rings.in_doubt)
        request = PairRequest(ours, peer.ring, number)
        size = overweight(request, ours.max_message_bytes)
        if size is not None:
            return words.indescribable(peer.identity, size, ours.max_message_bytes)
        self._pairings = peer.number = number
        self._turn.post(peer.route, request)
        return None

    def note(self, room: ReceiveRoom, failure: KVTransferError) -> None:
        """Note a room that was given up."""
        self._lately[room.room] = room, failure

    def opened(self, room: RoomId) -> None:
        """A room is opened: what was given up of an earlier one of its id is owed to nobody."""
        self._lately.pop(room, None)
        for owed in self._owed.values():
            owed.pop(room, None)

    def goes_on_as(self, peer: RemoteRank, bye: Bye) -> Incarnation | None:
        """Return who runs on where a rank says goodbye, and knows this side, or a request of it, no more."""
        another = bye.incarnation != peer.identity.incarnation
        return bye.incarnation if not bye.drained and (another or self._late(peer)) else None

    def lose(self, peer: RemoteRank, farewells: list[Farewell]) -> None:
        """Note that one is lost, to which these ``farewells`` were not said, unless it is refused."""
        address = peer.identity.address
        if self._at.get(address) is peer:
            del self._at[address]
        if peer.refused:
            keep(self._refused, address, peer)
        else:
            self.owe(peer, farewells)

    def owe(self, peer: RemoteRank, farewells: list[Farewell]) -> None:
        """Keep what whoever is dialled next in the place of a lost rank is to be told: its farewells, what
        was given up with it, and shortly before."""
        unsaid, now = (*farewells, *self._late(peer)), self._turn.now
        owed = {room.room: (room, why) for room, why in unsaid if room.deadline > now}
        if owed:
            self._owed.setdefault(peer.identity.address, {}).update(owed)

    def owed(self, address: str) -> int:
        """Return how many rooms whoever is dialled next at an address is told of."""
        return len(self._owed.get(address, ()))

    def sweep(self) -> None:
        """Forget what nobody waits for any more, once in a while."""
        now = self._turn.now
        if now < self._sweep_at:
            return
        self._sweep_at = now + LATELY
        self._lately = {id_: what for id_, what in self._lately.items() if self._is_late(what[0])}
        for address, owed in list(self._owed.items()):
            if all(room.deadline <= now for room, _ in owed.values()):
                del self._owed[address]

    def _late(self, peer: RemoteRank) -> list[Farewell]:
        """What was given up lately of rooms that needed a rank."""
        return [
            (room, why)
            for room, why in self._lately.values()
            if room.group is not None and peer in room.group.members and self._is_late(room)
        ]

    def _is_late(self, room: Room) -> bool:
        """Whether a room was given up lately, or bytes of it may move yet."""
        now = self._turn.now
        return not room.silent or now - (room.ended_at or now) <= LATELY

    def _route(self, identity: PeerIdentity) -> Route:
        """Return the name of the next connection to a rank.

        A life that was refused is asked again over the connection that it knows, where there still are last
        words: the other side takes a second one for the first, and drops what it has not read of that.
        """
        refused = self._refused.pop(identity.address, None)
        if refused is not None and refused.identity == identity:
            return refused.route
        self._connections += 1
        return Route(f"{identity.address}#{self._connections}".encode())
