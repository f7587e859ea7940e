"""A rank on the other side, what it means to this one, and the groups of such ranks that rooms wait for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

import attrs

from pdcore.errors import FailureCode, KVTransferError, Misfit
from pdcore.model import PeerIdentity
from pdcore.pairing.description import PeerDescription
from pdcore.protocol import words
from pdcore.protocol.groups import GroupKey
from pdcore.wire import PairReply, Route

if TYPE_CHECKING:
    from pdcore.protocol.receive.receive_room import ReceiveRoom
    from pdcore.protocol.room import Room

__all__ = [
    "Facts",
    "Farewell",
    "Fit",
    "Introduce",
    "PairingState",
    "PrefillGroup",
    "RemoteRank",
    "Rooms",
    "keep",
]


MOST = 1024
"""Ranks that are not paired of which something is remembered."""


K = TypeVar("K")
V = TypeVar("V")


class PairingState(Enum):
    """How far the pairing with a rank has come."""

    ASKED = "asked"
    CONNECTING = "connecting"
    PAIRED = "paired"
    LOST = "lost"


PAIRED, LOST = PairingState.PAIRED, PairingState.LOST
"""Asked for with every message: an enum's look-up takes longer than what is asked."""


@attrs.frozen
class Facts:
    """What one rank that receives means to this one: of its group, the ranks ``asking`` ask for each room.

    A ``dummy`` gets nothing from here. ``carries_aux``: this rank sends the aux row, ``row_by_message``: by a
    message. ``limit``: bytes that it takes in one message.
    """

    asking: tuple[int, ...] = (0,)
    dummy: bool = False
    carries_aux: bool = True
    row_by_message: bool = False
    limit: int = 2**20


Introduce = Callable[[PeerDescription], Facts | PairReply]


def _no_misfit(_: object) -> tuple[Misfit, ...]:
    return ()


@attrs.frozen
class Fit:
    """What other sides mean to this one, by what they say of themselves.

    ``introduce`` tells it of a rank that wants to receive, or returns the answer that refuses it; None: this
    side sends to nobody. ``suits`` tells what is amiss with a rank that sends, ``covers`` with all that send
    to this one together.
    """

    introduce: Introduce | None = None
    suits: Callable[[PeerDescription], tuple[Misfit, ...]] = _no_misfit
    covers: Callable[[Sequence[PeerDescription]], tuple[Misfit, ...]] = _no_misfit


Farewell = tuple["Room", KVTransferError]
"""A room that was given up, and why, which a rank is yet to be told."""


@attrs.define(eq=False)
class RemoteRank:
    """One life of a rank on the other side; ``dialled`` by this side, it sends here, else it asked us.

    ``ring`` is the staging ring of this side that it has; ``packs``: it writes there and nowhere else.
    ``number``: of the pairing, as who asked for it counts; 0: it was dialled, and could not be asked.
    """

    route: Route
    identity: PeerIdentity
    rank: int
    dialled: bool
    state: PairingState = PairingState.ASKED
    facts: Facts = attrs.field(factory=Facts)
    description: PeerDescription | None = None
    failure: KVTransferError | None = None
    successor: bool = False
    """Whether it was dialled to be told what was given up for the one that ran there before."""
    groups: list[PrefillGroup] = attrs.field(factory=list)
    farewells: list[Farewell] = attrs.field(factory=list)
    ring: int | None = None
    number: int = 0
    packs: bool = False

    def __str__(self) -> str:
        return str(self.identity)

    @property
    def ready(self) -> bool:
        """Whether it is paired."""
        return self.state is PAIRED

    @property
    def lost(self) -> bool:
        """Whether this life of it is over."""
        return self.state is LOST

    @property
    def refused(self) -> bool:
        """Whether it is lost because the two sides, or engines, do not fit: it was asked, and is there."""
        if self.dialled and not self.number:
            return False
        codes = FailureCode.INCOMPATIBLE, FailureCode.ENGINE
        return self.failure is not None and self.failure.code in codes

    def loss(self, room: int, why: str) -> KVTransferError:
        """Return why a room fails that needs it."""
        return words.lost_peer(self.identity, room, why)


@attrs.define(eq=False)
class PrefillGroup:
    """The prefill ranks that rooms wait for: found together, ready when all are paired."""

    key: GroupKey
    deadline: float
    members: tuple[RemoteRank, ...] = ()
    senders: tuple[RemoteRank, ...] = ()
    writers: frozenset[PeerIdentity] = frozenset()
    """Who of them sends, and so may write."""
    asked: tuple[PeerIdentity, ...] = ()
    """All of them: who is asked for each room."""
    failure: KVTransferError | None = None
    lost: bool = False
    """Whether it is of no use any more; the next request finds a new one."""
    waiting: list[ReceiveRoom] = attrs.field(factory=list)
    parting: list[tuple[ReceiveRoom, KVTransferError, RemoteRank | None]] = attrs.field(factory=list)

    @property
    def ready(self) -> bool:
        """Whether requests may be posted to all members."""
        if not self.members or self.failure is not None:
            return False
        return all(member.state is PAIRED for member in self.members)

    def take_waiting(self) -> list[ReceiveRoom]:
        """Return the rooms that waited for it: none does any more."""
        waiting, self.waiting = self.waiting, []
        return waiting

    def consist_of(self, senders: Sequence[RemoteRank], others: Sequence[RemoteRank]) -> None:
        """Take the members, once they are known; the ``others`` send nothing."""
        self.senders, self.members = tuple(senders), (*senders, *others)
        self.writers = frozenset(member.identity for member in senders)
        self.asked = tuple(member.identity for member in self.members)


class Rooms:
    """What rooms do when a peer comes and goes; sending and receiving each have their own part in it."""

    def paired(self, room: ReceiveRoom) -> None:
        """All that a room waits for are paired."""
        raise NotImplementedError

    def unpaired(self, room: ReceiveRoom, failure: KVTransferError) -> None:
        """They cannot be."""
        raise NotImplementedError

    def peer_lost(self, peer: RemoteRank, failure: KVTransferError) -> int:
        """A peer is lost; return how many rooms need it."""
        raise NotImplementedError

    def opened_again(self, room: Room) -> bool:
        """Whether the id of a room that was given up is in use again: nobody waits for that one then."""
        raise NotImplementedError


def keep(of: OrderedDict[K, V], key: K, value: V) -> None:
    """Remember something of a rank with what was remembered last, as far as there is room."""
    of[key] = value
    of.move_to_end(key)
    if len(of) > MOST:
        of.popitem(last=False)
