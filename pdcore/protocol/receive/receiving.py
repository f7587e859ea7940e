"""The rooms that receive: they find who sends, name their pages, and wait until all has arrived."""

from __future__ import annotations

from collections import Counter

from pdcore.errors import KVTransferError
from pdcore.model import Generation, KVPoll, PeerIdentity, RoomId
from pdcore.protocol import awaited, words
from pdcore.protocol.actions import Asked, Begun, CheckRow, WriteRow
from pdcore.protocol.peer import RemoteRank
from pdcore.protocol.peers import Peers
from pdcore.protocol.receive.receive_room import ReceiveRoom
from pdcore.protocol.receive.requests import Requests
from pdcore.protocol.receive.unpacking import Unpacking
from pdcore.protocol.room import Awaited, Turn, require_cleared
from pdcore.protocol.stimuli import (
    BytesUnpacked,
    Choose,
    Compared,
    OpenReceive,
    Place,
    RowChecked,
    RowWritten,
)
from pdcore.wire import AuxRow, Digests, Failure, Inquiry, Packed, Released, RoomStatus, Standing, Verdict

__all__ = ["Receiving"]

LATE = 0.1
"""Seconds after which a room that has not asked tells prefill that it is open."""

OfARoom = RoomStatus | AuxRow | Digests | Released | Standing | Packed


class Receiving:
    """All rooms of one side that receive. ``interval``: seconds between reminders; ``limit``: of messages."""

    def __init__(self, turn: Turn, peers: Peers, interval: float, limit: int, counts: Counter[str]) -> None:
        self._turn, self._peers, self._interval = turn, peers, interval
        self._requests = Requests(turn, peers, limit)
        self._unpacking = Unpacking(turn, peers)
        self.present: dict[RoomId, ReceiveRoom] = {}
        self.rooms: dict[Generation, ReceiveRoom] = {}
        """Those that are not cleared, or may still be written to."""
        self._counts = counts
        self._remind_at = 0.0
        self._closed = False

    # --- what the scheduler does -------------------------------------------------------------

    def open(self, what: OpenReceive) -> ReceiveRoom:
        """Open a room.

        Raises:
            RoomError: it is open already.
        """
        require_cleared(self.present.get(what.room))
        now = self._turn.now
        room = ReceiveRoom(what.room, what.generation, now, what.deadline, default=what.default)
        self.present[room.room] = self.rooms[room.generation] = room
        self._peers.dialled.opened(room.room)
        self._turn.expect(room)
        self._turn.do(Begun(room.room, room.generation))
        return room

    def choose(self, what: Choose) -> None:
        """Take the group that shall send, and wait until it is paired."""
        room = self.rooms.get(what.generation)
        if room is None or room.key is not None:
            return
        room.key = what.key
        if self._closed:
            return
        room.group = self._peers.group(what.key)
        if room.failure is None:
            self._peers.await_group(room.group, room)
        elif what.key != room.default:
            # Another group may have been told, before this was known.
            self._peers.part(room.group, room, room.failure)

    def place(self, what: Place) -> None:
        """Take where the request shall land; asked for as soon as all are paired."""
        room = self.rooms.get(what.generation)
        if room is None or room.failure is not None:
            return
        room.wanted = what.wanted
        self._ask(room)

    def clear(self, room: ReceiveRoom) -> None:
        """Free the id of a room; one that may be written to stays known until it may not."""
        if self.present.get(room.room) is room:
            del self.present[room.room]
        room.cleared = True
        if room.silent:
            self._forget(room)

    # --- peers ---------------------------------------------------------------------------------

    def paired(self, room: ReceiveRoom) -> None:
        """All that send to a room are paired."""
        room.met_at = room.met_at or self._turn.now
        room.rise(KVPoll.WAITING_FOR_INPUT)
        self._ask(room)

    def unpaired(self, room: ReceiveRoom, failure: KVTransferError) -> None:
        """They cannot be."""
        self.give_up(room, failure)

    def peer_lost(self, peer: RemoteRank, failure: KVTransferError) -> int:
        """Fail the rooms that need a peer which is lost; return how many need it."""
        affected = [r for r in self.rooms.values() if self._uses(r, peer)]
        for room in affected:
            self.give_up(room, failure, peer)
        return len(affected)

    def silent(self, identity: PeerIdentity, upto: Generation | None = None) -> None:
        """No byte of a peer can land any more in rooms up to a generation; None: in any."""
        self._peers.rings.silent(identity, upto)
        for room in [r for r in self.rooms.values() if identity in r.writers]:
            if upto is None or room.generation <= upto:
                self._drained(room, identity)

    def reconnected(self, peer: RemoteRank) -> None:
        """What was under way when a connection ended is lost, whoever said it."""
        for room in list(self.rooms.values()):
            if not room.over and self._uses(room, peer):
                room.announced_at = None
                if room.asking and peer.identity not in room.responded:
                    self._turn.post(peer.route, Inquiry(room.room, room.generation))

    # --- what prefill says -----------------------------------------------------------------------

    def take(self, peer: RemoteRank, message: OfARoom) -> None:
        """Take what a prefill rank says of a room."""
        room = self.rooms.get(message.generation)
        if room is None or room.room != message.room or not self._uses(room, peer):
            self._counts["stale"] += 1
            if isinstance(message, Packed):
                self._unpacking.decline(peer, message)
        elif isinstance(message, Packed):
            self._unpacking.begin(room, peer, message)
        elif isinstance(message, RoomStatus):
            self._on_status(room, peer, message)
        elif isinstance(message, Released):
            self._drained(room, peer.identity)
        elif isinstance(message, AuxRow):
            slot = room.wanted.aux_index if room.wanted is not None else None
            if slot is not None and not room.over:
                room.rows += 1
                self._turn.do(WriteRow(room.generation, slot, message.row))
        elif isinstance(message, Standing):
            room.standing[peer.identity] = message.waits_for
        elif not room.over:
            self._unpacking.compare(room, peer, message)

    def compared(self, what: Compared) -> None:
        """Tell what a look at the bytes came to."""
        room, sent, failure = self.rooms.get(what.generation), what.digests, what.failure
        if room is None or room.failure is not None:
            return
        told = Failure.of(failure) if failure is not None else None
        self._turn.post(what.route, Verdict(sent.room, sent.generation, sent.chunk, sent.part, told))
        if failure is not None:
            self.give_up(room, failure, self._peers.by_route.get(what.route))

    def unpacked(self, what: BytesUnpacked) -> None:
        """What came packed is in its pages, or cannot be: that ends the room."""
        if (room := self.rooms.get(what.generation)) is None:
            return
        self._unpacking.ended(room, what)
        if what.failure is not None:
            self.give_up(room, what.failure)
        self._end_if_arrived(room)
        self._look_for_silence(room)

    def row_written(self, what: RowWritten) -> None:
        """A row that came by message is in its slot, or cannot be: that ends the room."""
        room = self.rooms.get(what.generation)
        if room is None:
            return
        room.rows -= 1
        if what.failure is not None:
            self.give_up(room, what.failure)
        self._look_for_silence(room)

    def row_checked(self, what: RowChecked) -> None:
        """The row is there, or another's is: that ends the room."""
        room = self.rooms.get(what.generation)
        if room is not None and room.checking:
            room.checking = False
            self._end(room, what.failure)

    # --- ends ------------------------------------------------------------------------------------

    def give_up(self, room: ReceiveRoom, failure: KVTransferError, told: RemoteRank | None = None) -> None:
        """End a room as FAILED and tell who was to send; ``told`` knows it."""
        if not self._end(room, failure):
            return
        self._peers.dialled.note(room, failure)
        if room.asking:
            self._requests.abandon(room, failure, told)
        elif room.group is not None:
            self._peers.part(room.group, room, failure, told)
        elif not self._closed:
            self._peers.part(self._peers.group(room.default), room, failure, told)

    def awaited(self, room: ReceiveRoom) -> Awaited:
        """Return what a room waits for now, and of whom."""
        return awaited.of_receiving(room, self._peers.trouble)

    def all_silent(self) -> None:
        """The engine is closed: no byte lands any more."""
        self._peers.rings.all_silent()
        for room in list(self.rooms.values()):
            for identity in list(room.writers):
                self._drained(room, identity)

    def close(self, failure: KVTransferError) -> None:
        """End every room; nobody is looked for any more."""
        self._closed = True
        for room in list(self.present.values()):
            self.give_up(room, failure)

    def tick(self) -> None:
        """Look after rooms that wait; once per interval, ask again after those that are not safe."""
        now = self._turn.now
        for room in self.present.values():
            if now - room.opened_at > LATE and not room.over:
                self._requests.look_after(room)
        if now >= self._remind_at:
            self._remind_at = now + self._interval
            for room in list(self.rooms.values()):
                if room.failure is not None and room.writers:
                    self._requests.remind(room, room.failure)

    # --- inside ------------------------------------------------------------------------------------

    def _uses(self, room: ReceiveRoom, peer: RemoteRank) -> bool:
        if room.asking:
            return peer.identity in room.asked
        return room.group is not None and peer.identity in room.group.asked

    def _on_status(self, room: ReceiveRoom, peer: RemoteRank, message: RoomStatus) -> None:
        if message.drained:
            self._drained(room, peer.identity)
        if message.status is KVPoll.FAILED:
            # The other ranks may be writing yet: they are told to stop.
            failure = message.failure.error() if message.failure else words.unexplained(room.room)
            self.give_up(room, failure, peer)
            return
        if message.status is not KVPoll.SUCCESS or room.over:
            return
        room.responded.add(peer.identity)
        room.packed[peer.identity] = message.packed
        self._end_if_arrived(room)

    def _end_if_arrived(self, room: ReceiveRoom) -> None:
        if room.over or room.checking or not room.arrived:
            return
        slot = room.wanted.aux_index if room.wanted is not None else None
        if slot is None:
            self._end(room, None)
        else:
            room.checking = True
            self._turn.do(CheckRow(room.generation, slot))

    def _end(self, room: ReceiveRoom, failure: KVTransferError | None) -> bool:
        if not self._turn.end(room, failure):
            return False
        self._look_for_silence(room)
        return True

    def _drained(self, room: ReceiveRoom, identity: PeerIdentity) -> None:
        if identity in room.writers:
            room.writers.discard(identity)
            self._look_for_silence(room)

    def _look_for_silence(self, room: ReceiveRoom) -> None:
        if room.over and room.at_rest:
            self._turn.silence(room)
            if room.cleared:
                self._forget(room)

    def _forget(self, room: ReceiveRoom) -> None:
        if self.rooms.pop(room.generation, None) is not None:
            self._turn.forget(room)

    def _ask(self, room: ReceiveRoom) -> None:
        """Post the requests once the group is paired and the pages are known."""
        group, wanted = room.group, room.wanted
        if room.over or room.asking or wanted is None or group is None or not group.ready:
            return
        failure = self._requests.too_large(wanted, group)
        if failure is not None:
            self.give_up(room, failure)
            return
        room.ask(group, self._turn.now)
        self._turn.do(Asked(room.room, room.generation, len(wanted.pages), len(group.members)))
        self._requests.ask(room, wanted, group)
