"""The ranks on the other side: asked, paired, lost; and the groups of them that rooms wait for.

Both roles have them. Who receives dials and asks; who sends answers.
"""

from __future__ import annotations

import attrs

from pdcore.errors import KVTransferError
from pdcore.layout.staging import packs
from pdcore.model import Incarnation, PeerIdentity
from pdcore.pairing.description import PeerDescription
from pdcore.protocol import words
from pdcore.protocol.actions import Admit, Connect, Dial, Find, Lost, Paired, Revoke
from pdcore.protocol.groups import GroupKey, Member
from pdcore.protocol.peer import Fit, PairingState, PrefillGroup, RemoteRank, Rooms
from pdcore.protocol.receive.dialled import DialledRanks
from pdcore.protocol.receive.receive_room import ReceiveRoom
from pdcore.protocol.receive.rings import Rings
from pdcore.protocol.room import Room, Turn
from pdcore.protocol.send.strangers import Strangers
from pdcore.protocol.stimuli import GroupFound
from pdcore.wire import Bye, Failure, Message, PairReply, PairRequest, Route, limit_of

__all__ = ["Peers"]


class Peers:
    """All peers by route, and groups by key. ``pairing`` are the seconds that a pairing may take."""

    def __init__(self, turn: Turn, ours: PeerDescription, fit: Fit, pairing: float, rooms: Rooms) -> None:
        self._turn, self._ours, self._fit = turn, ours, fit
        self._pairing, self._rooms = pairing, rooms
        self.by_route: dict[Route, RemoteRank] = {}
        self.rings = Rings(ours.staging.rings if ours.staging is not None else 0)
        self.groups: dict[GroupKey, PrefillGroup] = {}
        self.trouble: dict[str, str] = {}
        self._look_at = 0.0
        """When the next group may be out of time; it is lost, or was not ready when somebody looked."""
        self.strangers, self.dialled = Strangers(turn, ours.incarnation), DialledRanks(turn, ours, self.rings)

    def at(self, route: Route, identity: PeerIdentity | None = None) -> RemoteRank | None:
        """Return who is at a route, if that is still who was meant."""
        peer = self.by_route.get(route)
        return peer if peer is not None and identity in (peer.identity, None) else None

    def tell(self, identity: PeerIdentity, message: Message, route: Route | None = None) -> None:
        """Tell a process something, if it is paired, perhaps anew; one that dialled us is at a ``route``."""
        peer = self.dialled.paired_with(identity) if route is None else self.at(route, identity)
        if peer is not None and peer.ready:
            self._turn.post(peer.route, message)

    # --- who receives: look up, dial, ask ----------------------------------------------------

    def group(self, key: GroupKey) -> PrefillGroup:
        """Return a group, looking for it if it is not known."""
        group = self.groups.get(key)
        if group is None or group.lost:
            group = self.groups[key] = PrefillGroup(key, self._turn.now + self._pairing)
            self._look_at = min(self._look_at, group.deadline)
            self._turn.do(Find(key))
        return group

    def await_group(self, group: PrefillGroup, room: ReceiveRoom) -> None:
        """Tell a room when all are paired or one failed; at once if that is known."""
        failure = next((m.failure for m in group.members if m.failure is not None), group.failure)
        if failure is not None:
            self._rooms.unpaired(room, failure)
        elif group.ready:
            self._rooms.paired(room)
        else:
            group.waiting.append(room)

    def found(self, what: GroupFound) -> None:
        """Take the members of a group; those that are not known are dialled and asked."""
        group, senders, others = self.groups.get(what.key), what.senders, what.others
        if group is None or group.members or group.failure is not None:
            return
        if what.known_as is not None and what.known_as != what.key:
            group.key = what.known_as
            self._rename(what.key, group)
        group.consist_of([self._known(one, sends=True) for one in senders], list(map(self._known, others)))
        parting, group.parting = group.parting, []
        for room, failure, told in parting:
            self.part(group, room, failure, told)
        for member in group.members:
            if member.failure is not None:
                self.fail_group(group, member.failure)
                return
            if not member.ready:
                member.groups.append(group)
        self._tell_if_ready(group)

    def not_found(self, key: GroupKey, failure: KVTransferError) -> None:
        """A group cannot be found."""
        group = self.groups.get(key)
        if group is not None and not group.members:
            self.fail_group(group, failure)

    def fail_group(self, group: PrefillGroup, failure: KVTransferError) -> None:
        """It cannot become ready: fail who waits."""
        if group.failure is None and not group.ready:
            self._end_group(group, failure)

    def part(
        self, group: PrefillGroup, room: ReceiveRoom, failure: KVTransferError, told: RemoteRank | None = None
    ) -> None:
        """Tell the members, none of which was asked, that a room was given up: each once it is paired."""
        if not group.members:
            if group.failure is None:
                group.parting.append((room, failure, told))
            return
        for member in group.members:
            if member is told:
                continue
            if member.ready or (member.lost and member.refused):
                self._farewell(member, room, failure)
            elif member.lost:
                self.dialled.owe(member, [(room, failure)])
            else:
                member.farewells.append((room, failure))

    def answered(self, peer: RemoteRank, reply: PairReply) -> None:
        """Take a prefill rank's answer; the engine admits its writes before any request goes out."""
        there = reply.description
        if there.incarnation != peer.identity.incarnation:
            self.replaced(peer, there.incarnation)
        elif reply.number not in (0, peer.number):
            pass  # it is to an earlier request
        elif misfits := reply.misfits or self._fit.suits(there):
            self.lose(peer, words.misfits(peer.identity, misfits))
        elif reply.failure is not None:
            self.lose(peer, reply.failure.error())
        elif peer.state is PairingState.ASKED:
            peer.state, peer.description = PairingState.CONNECTING, there
            peer.facts = attrs.evolve(peer.facts, limit=limit_of(self._ours.max_message_bytes, there))
            peer.packs = peer.ring is not None and packs(self._ours.staging, there.staging)
            self._turn.do(Admit(peer.route, peer.identity, there))

    # --- who sends: take in or refuse --------------------------------------------------------

    def asked_to_pair(self, route: Route, request: PairRequest) -> bool:
        """Begin to pair with a rank that receives; what it had before is over. False: it may not ask here."""
        introduce = self._fit.introduce
        old = self.by_route.get(route)
        if introduce is None or (old is not None and old.dialled):
            return False
        if old is not None and old.state is PairingState.CONNECTING and old.number == request.number:
            return True  # the answer is under way
        if old is not None:
            self.lose(old, words.gone(old.identity, "it paired anew"))
        peer = self.strangers.take_in(route, request, introduce)
        if peer is not None:
            self.by_route[route] = peer
            self._turn.do(Connect(route, peer.identity, request.description, request.ring))
        return True

    # --- both --------------------------------------------------------------------------------

    def connected(self, peer: RemoteRank) -> None:
        """The engine knows it: it is paired."""
        if peer.state is not PairingState.CONNECTING:
            return
        peer.state = PairingState.PAIRED
        if peer.description is not None:
            self._turn.do(Paired(peer.identity, peer.description))
        if not peer.dialled:
            self._turn.post(peer.route, PairReply(self._ours, number=peer.number))
        groups, farewells, peer.groups, peer.farewells = peer.groups, peer.farewells, [], []
        for room, failure in farewells:
            self._farewell(peer, room, failure)
        for group in groups:
            self._tell_if_ready(group)

    def failed(self, peer: RemoteRank, failure: KVTransferError) -> None:
        """The engine cannot be connected to it."""
        if peer.lost:
            return
        if not peer.dialled:
            reply = PairReply(self._ours, (), Failure.of(failure), peer.number)
            self.strangers.refuse(peer.route, peer.rank, reply)
        self.lose(peer, failure)

    def replaced(self, peer: RemoteRank, there: Incarnation) -> None:
        """Another life of a peer speaks."""
        self.lose(peer, words.replaced(peer.identity, there), there=there)

    def left(self, peer: RemoteRank, bye: Bye) -> None:
        """A peer leaves; or it goes on, and knows this side, or a request of it, no more."""
        there = self.dialled.goes_on_as(peer, bye)
        self.lose(peer, words.gone(peer.identity, bye.reason), in_order=True, there=there)

    def lose(
        self,
        peer: RemoteRank,
        failure: KVTransferError,
        *,
        in_order: bool = False,
        there: Incarnation | None = None,
    ) -> None:
        """Note that a peer is lost, and fail what needs it; ``in_order``: it said that it leaves.

        One who runs ``there``, and to whom this side is a stranger, is dialled if it is to be told something:
        once, or who has another name each time would be dialled for ever.
        """
        if peer.lost:
            return
        paired = peer.ready
        peer.failure, peer.state = failure, PairingState.LOST
        if self.by_route.get(peer.route) is peer:
            del self.by_route[peer.route]
        for group in self.groups.values():
            if peer in group.members:
                group.lost, self._look_at = True, 0.0
        groups, farewells, peer.groups, peer.farewells = peer.groups, peer.farewells, [], []
        if peer.refused:
            for room, why in farewells:
                self._farewell(peer, room, why)
        for group in groups:
            self.fail_group(group, failure)
        rooms, dialled, stays = self._rooms.peer_lost(peer, failure), peer.dialled, peer.refused
        self.rings.part(peer.ring, peer.identity, self._turn.newest, paired=paired)
        self._turn.do(Lost(peer.route, peer.identity, failure, paired, dialled, stays, rooms, in_order))
        if dialled and peer.description is not None:
            self._turn.do(Revoke(peer.identity, peer.description, self._turn.newest))
        if dialled:
            self.dialled.lose(peer, farewells)
            if there is not None and not peer.successor and self.dialled.owed(peer.identity.address):
                identity = attrs.evolve(peer.identity, incarnation=there)
                self._dial(identity, peer.rank, sends=peer.ring is not None, successor=True)

    def tick(self) -> None:
        """Give up the pairings that take too long, and forget the groups that are lost."""
        now = self._turn.now
        self.dialled.sweep()
        if now < self._look_at:
            return
        self._look_at = float("inf")
        for key, group in list(self.groups.items()):
            if not group.lost and group.deadline <= now and not group.ready:
                failure = words.not_paired_in_time(group.key, self._pairing)
                for member in group.members:
                    if not member.ready:
                        self.lose(member, failure)
                self.fail_group(group, failure)
            if group.lost:
                del self.groups[key]
            elif group.key != key:
                self._rename(key, group)
            elif not group.ready:
                self._look_at = min(self._look_at, group.deadline)

    # --- inside ------------------------------------------------------------------------------

    def _rename(self, key: GroupKey, group: PrefillGroup) -> None:
        """Know a group that was looked for by a room by its DP rank, once none of that name is looked for."""
        known = self.groups.get(group.key)
        if known is None or known.lost:
            self.groups[group.key] = group
        if known is None or known.lost or known.ready:
            del self.groups[key]
        else:
            self._look_at = 0.0

    def _known(self, member: Member, *, sends: bool = False) -> RemoteRank:
        old = self.dialled.at(member.identity.address)
        if old is not None:
            if old.identity == member.identity:
                return old
            self.lose(old, words.replaced(old.identity, member.identity.incarnation))
        return self._dial(member.identity, member.rank, sends=sends)

    def _dial(self, identity: PeerIdentity, rank: int, *, sends: bool, successor: bool = False) -> RemoteRank:
        peer = self.dialled.add(identity, rank, successor=successor)
        self.by_route[peer.route] = peer
        self._turn.do(Dial(peer.route, identity))
        if (failure := self.dialled.ask(peer, sends=sends)) is not None:
            self.lose(peer, failure)
        return peer

    def _tell_if_ready(self, group: PrefillGroup) -> None:
        if not group.ready or group.failure is not None:
            return
        misfits = self._fit.covers([s.description for s in group.senders if s.description is not None])
        if misfits:
            self._end_group(group, words.misfits(group.key, misfits))
            return
        for room in group.take_waiting():
            self._rooms.paired(room)

    def _end_group(self, group: PrefillGroup, failure: KVTransferError) -> None:
        group.failure, group.lost, self._look_at = failure, True, 0.0
        group.parting.clear()
        for room in group.take_waiting():
            self._rooms.unpaired(room, failure)

    def _farewell(self, peer: RemoteRank, room: Room, failure: KVTransferError) -> None:
        if not self._rooms.opened_again(room):
            self._turn.post(peer.route, room.farewell(failure, self._turn.now))
