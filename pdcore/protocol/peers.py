"""The ranks on the other side: asked, paired, lost; and the groups of them that rooms wait for.

Both roles have them. Who receives dials and asks; who sends answers.
"""

from __future__ import annotations

from collections import OrderedDict

import attrs

from pdcore.errors import KVTransferError
from pdcore.layout.staging import packs
from pdcore.model import PeerIdentity
from pdcore.pairing.description import PeerDescription
from pdcore.protocol import words
from pdcore.protocol.actions import Admit, Connect, Dial, Find, Lost, Paired, Revoke, TurnedAway
from pdcore.protocol.groups import GroupKey, Member
from pdcore.protocol.peer import Fit, PairingState, PrefillGroup, RemoteRank, Rooms
from pdcore.protocol.receive.receive_room import ReceiveRoom
from pdcore.protocol.receive.rings import Rings
from pdcore.protocol.room import Turn
from pdcore.protocol.stimuli import GroupFound
from pdcore.wire import Bye, Failure, Message, PairReply, PairRequest, Route, limit_of, overweight

__all__ = ["Peers"]

MOST_REFUSED = 1024


class Peers:
    """All peers by route, and groups by key. ``pairing`` are the seconds that a pairing may take."""

    def __init__(self, turn: Turn, ours: PeerDescription, fit: Fit, pairing: float, rooms: Rooms) -> None:
        self._turn, self._ours, self._fit = turn, ours, fit
        self._pairing, self._rooms = pairing, rooms
        self.by_route: dict[Route, RemoteRank] = {}
        self._pairings = 0
        self.rings = Rings(ours.staging.rings if ours.staging is not None else 0)
        self.groups: dict[GroupKey, PrefillGroup] = {}
        self.trouble: dict[str, str] = {}
        self._look_at = 0.0
        """When the next group may be out of time; it is lost, or was not ready when somebody looked."""
        self.refused: OrderedDict[Route, int] = OrderedDict()

    def at(self, route: Route, identity: PeerIdentity | None = None) -> RemoteRank | None:
        """Return who is at a route, if that is still who was meant."""
        peer = self.by_route.get(route)
        return peer if peer is not None and identity in (peer.identity, None) else None

    def reaches(self, identity: PeerIdentity, route: Route) -> RemoteRank | None:
        """Return a process that is paired, perhaps anew."""
        peer = self.by_route.get(route)
        return peer if peer is not None and peer.ready and peer.identity == identity else None

    def tell(self, identity: PeerIdentity, route: Route, message: Message) -> None:
        """Tell a process something, if it is paired, perhaps anew."""
        if self.reaches(identity, route) is not None:
            self._turn.post(route, message)

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
                self._turn.post(member.route, room.farewell(failure, self._turn.now))
            elif not member.lost:
                member.farewells.append((room, failure))

    def answered(self, peer: RemoteRank, reply: PairReply) -> None:
        """Take a prefill rank's answer; the engine admits its writes before any request goes out."""
        there = reply.description
        if there.incarnation != peer.identity.incarnation:
            self.lose(peer, words.replaced(peer.identity, there.incarnation))
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
        there, introduce = request.description, self._fit.introduce
        old = self.by_route.get(route)
        if introduce is None or (old is not None and old.dialled):
            return False
        if old is not None and old.state is PairingState.CONNECTING and old.number == request.number:
            return True  # the answer is under way
        if old is not None:
            self.lose(old, words.gone(old.identity, "it paired anew"))
        facts = introduce(there)
        identity = PeerIdentity(there.role, there.incarnation, there.address)
        rank = there.topology.unique_rank
        if isinstance(facts, PairReply):
            self._refuse(route, rank, attrs.evolve(facts, number=request.number))
            why = facts.failure.error() if facts.failure else words.misfits(identity, facts.misfits)
            self._turn.do(TurnedAway(identity, why))
        else:
            self.refused.pop(route, None)
            peer = RemoteRank(route, identity, rank, False, PairingState.CONNECTING, facts, there)
            peer.number, self.by_route[route] = request.number, peer
            self._turn.do(Connect(route, identity, there, request.ring))
        return True

    def disown(self, route: Route) -> None:
        """Tell a rank that it is not paired, so that its next request pairs anew."""
        reason = "it doesn't know this decode worker"
        self._turn.post(route, Bye(self._ours.incarnation, reason, drained=False))

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
            self._turn.post(peer.route, room.farewell(failure, self._turn.now))
        for group in groups:
            self._tell_if_ready(group)

    def failed(self, peer: RemoteRank, failure: KVTransferError) -> None:
        """The engine cannot be connected to it."""
        if peer.lost:
            return
        if not peer.dialled:
            self._refuse(peer.route, peer.rank, PairReply(self._ours, (), Failure.of(failure), peer.number))
        self.lose(peer, failure)

    def lose(self, peer: RemoteRank, failure: KVTransferError, *, in_order: bool = False) -> None:
        """Note that a peer is lost, and fail what needs it; ``in_order``: it said that it leaves."""
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
                self._turn.post(peer.route, room.farewell(why, self._turn.now))
        for group in groups:
            self.fail_group(group, failure)
        rooms, dialled = self._rooms.peer_lost(peer, failure), peer.dialled
        self.rings.part(peer.ring, peer.identity, self._turn.newest, paired=paired)
        stays = peer.refused
        self._turn.do(Lost(peer.route, peer.identity, failure, paired, dialled, stays, rooms, in_order))
        if dialled and peer.description is not None:
            self._turn.do(Revoke(peer.identity, peer.description, self._turn.newest))

    def tick(self) -> None:
        """Give up the pairings that take too long, and forget the groups that are lost."""
        now = self._turn.now
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
        old = self.by_route.get(member.route)
        if old is not None:
            if old.identity == member.identity:
                return old
            self.lose(old, words.replaced(old.identity, member.identity.incarnation))
        peer = self.by_route[member.route] = RemoteRank(member.route, member.identity, member.rank, True)
        self._turn.do(Dial(peer.route, peer.identity))
        peer.ring = self.rings.lend() if sends else None
        self._pairings = peer.number = self._pairings + 1
        request, limit = PairRequest(self._ours, peer.ring, peer.number), self._ours.max_message_bytes
        size = overweight(request, limit)
        if sends and peer.ring is None and packs(self._ours.staging, None):
            self.lose(peer, words.no_ring(peer.identity, self.rings.total, self.rings.in_doubt))
        elif size is None:
            self._turn.post(peer.route, request)
        else:
            self.lose(peer, words.indescribable(peer.identity, size, limit))
        return peer

    def _tell_if_ready(self, group: PrefillGroup) -> None:
        if not group.ready or group.failure is not None:
            return
        misfits = self._fit.covers([s.description for s in group.senders if s.description is not None])
        if misfits:
            self._end_group(group, words.misfits(group.key, misfits))
            return
        waiting, group.waiting = group.waiting, []
        for room in waiting:
            self._rooms.paired(room)

    def _end_group(self, group: PrefillGroup, failure: KVTransferError) -> None:
        group.failure, group.lost, self._look_at = failure, True, 0.0
        waiting, group.waiting = group.waiting, []
        group.parting.clear()
        for room in waiting:
            self._rooms.unpaired(room, failure)

    def _refuse(self, route: Route, rank: int, reply: PairReply) -> None:
        self.refused[route] = rank
        if len(self.refused) > MOST_REFUSED:
            self.refused.popitem(last=False)
        self._turn.post(route, reply)
