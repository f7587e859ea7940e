"""Bytes of a room that came packed: taken out of their slots, each once, and the slots given back."""

from __future__ import annotations

from pdcore.model import PeerIdentity
from pdcore.protocol.actions import Compare, Unpack
from pdcore.protocol.peer import RemoteRank
from pdcore.protocol.peers import Peers
from pdcore.protocol.receive.receive_room import ReceiveRoom
from pdcore.protocol.room import Turn
from pdcore.protocol.stimuli import BytesUnpacked
from pdcore.wire import Digests, Packed, Unpacked

__all__ = ["Unpacking"]


class Unpacking:
    """Decides what happens to a slot that a rank has filled. Whoever hears of one gives it back at last, or
    the rank has a slot less."""

    def __init__(self, turn: Turn, peers: Peers) -> None:
        self._turn, self._peers = turn, peers

    def begin(self, room: ReceiveRoom, peer: RemoteRank, packed: Packed) -> None:
        """Have the bytes taken out, unless that was begun before; what has ended has no use for them."""
        use = peer.identity, packed.number
        if use in room.unpacking:
            return
        if room.over or peer.ring is None or use in room.unpacked:
            self.decline(peer, packed)
            return
        room.unpacking.add(use)
        self._turn.do(Unpack(room.generation, peer.identity, peer.ring, packed))

    def decline(self, peer: RemoteRank, packed: Packed) -> None:
        """Give a slot back whose bytes are of no use, or were taken: that was not heard."""
        self._turn.post(peer.route, Unpacked(packed.slot, packed.number))

    def compare(self, room: ReceiveRoom, peer: RemoteRank, digests: Digests) -> None:
        """Have digests compared, once all that came packed before them is where it belongs."""
        if self._taken_of(room, peer.identity) < digests.packed:
            room.uncompared.append((peer.route, peer.identity, digests))
        else:
            self._turn.do(Compare(room.generation, peer.route, digests))

    def ended(self, room: ReceiveRoom, what: BytesUnpacked) -> None:
        """They are where they belong, or cannot be: the slot is free."""
        identity, packed = what.identity, what.packed
        use = identity, packed.number
        room.unpacking.discard(use)
        room.unpacked.add(use)
        self._peers.tell(identity, Unpacked(packed.slot, packed.number))
        waiting, room.uncompared = room.uncompared, []
        for route, sender, digests in waiting:
            if self._taken_of(room, sender) < digests.packed:
                room.uncompared.append((route, sender, digests))
            elif not room.over:
                self._turn.do(Compare(room.generation, route, digests))

    @staticmethod
    def _taken_of(room: ReceiveRoom, sender: PeerIdentity) -> int:
        return sum(one == sender for one, _ in room.unpacked)
