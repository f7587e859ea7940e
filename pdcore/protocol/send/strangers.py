"""Ranks that ask this one for rooms and are not paired with it: refused, or unknown."""

from __future__ import annotations

from collections import OrderedDict

import attrs

from pdcore.model import Incarnation, PeerIdentity
from pdcore.protocol import words
from pdcore.protocol.actions import TurnedAway
from pdcore.protocol.peer import Introduce, PairingState, RemoteRank, keep
from pdcore.protocol.room import Turn
from pdcore.wire import Bye, PairReply, PairRequest, Route

__all__ = ["Strangers"]

AGAIN = 1.0
"""Seconds after which one that goes on speaking is told once more that it is a stranger."""


class Strangers:
    """Those that were answered last. ``refused`` has the unique ranks of those that asked to pair."""

    def __init__(self, turn: Turn, ours: Incarnation) -> None:
        self._turn, self._ours = turn, ours
        self.refused: OrderedDict[Route, int] = OrderedDict()
        self._disowned: OrderedDict[Route, float] = OrderedDict()

    def take_in(self, route: Route, request: PairRequest, introduce: Introduce) -> RemoteRank | None:
        """Return one that asks to pair, unless it is refused."""
        there = request.description
        identity = PeerIdentity(there.role, there.incarnation, there.address)
        rank, facts = there.topology.unique_rank, introduce(there)
        if isinstance(facts, PairReply):
            self.refuse(route, rank, attrs.evolve(facts, number=request.number))
            why = facts.failure.error() if facts.failure else words.misfits(identity, facts.misfits)
            self._turn.do(TurnedAway(identity, why))
            return None
        self.refused.pop(route, None)
        self._disowned.pop(route, None)
        state, number = PairingState.CONNECTING, request.number
        return RemoteRank(route, identity, rank, False, state, facts, there, number=number)

    def refuse(self, route: Route, rank: int, reply: PairReply) -> None:
        """Refuse to pair with a rank."""
        keep(self.refused, route, rank)
        self._turn.post(route, reply)

    def disown(self, route: Route) -> None:
        """Tell a rank that it is not paired, so that its next request pairs anew; once for all that it said
        together, or a later word might meet it as it pairs."""
        now = self._turn.now
        if now - self._disowned.get(route, -AGAIN) >= AGAIN:
            self._turn.post(route, Bye(self._ours, "it doesn't know this decode worker", drained=False))
            keep(self._disowned, route, now)
