"""The rooms that send: what their scheduler does, how chunks leave, and how a room ends."""

from __future__ import annotations

import attrs

from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Generation, KVPoll, RoomId
from pdcore.protocol.actions import AwaitSource, Begun, Cancel, Examine, FreeSlot, ReadRow, Ship, Suspect
from pdcore.protocol.chunk import DeliveryId, TransferKVChunk, delivery_id
from pdcore.protocol.peer import RemoteRank
from pdcore.protocol.room import Turn, require_cleared
from pdcore.protocol.send.answers import Answers
from pdcore.protocol.send.send_room import SendRoom
from pdcore.protocol.stimuli import (
    AnnouncePages,
    DeliveryDrained,
    DeliveryEnded,
    Examined,
    OpenSend,
    RowRead,
    SlotWritten,
    SourceReady,
    Supply,
)
from pdcore.wire import (
    AuxRow,
    Released,
    Route,
    Verdict,
    overweight,
    too_large,
)

__all__ = ["Sending"]


class Sending:
    """All rooms of one side that send. ``page_size``: in tokens; ``verify``: digests go out."""

    def __init__(self, turn: Turn, answers: Answers, page_size: int, *, verify: bool) -> None:
        self._turn, self._answers, self._page_size, self._verify = turn, answers, page_size, verify
        self.present: dict[RoomId, SendRoom] = {}
        self.rooms: dict[Generation, SendRoom] = {}
        """Those that are not cleared, or not drained."""
        self._draining: dict[Generation, SendRoom] = {}
        self._deliveries: dict[DeliveryId, SendRoom] = {}

    # --- what the scheduler does -------------------------------------------------------------

    def open(self, what: OpenSend) -> SendRoom:
        """Open a room.

        Raises:
            RoomError: it is open already.
        """
        require_cleared(self.present.get(what.room))
        room = SendRoom(what.room, what.generation, self._turn.now, what.deadline)
        self.present[room.room] = self.rooms[room.generation] = room
        self._turn.expect(room)
        self._turn.do(Begun(room.room, room.generation))
        return room

    def announce(self, what: AnnouncePages) -> None:
        """Take what ``init`` says; raises what :meth:`SendRoom.announce` does."""
        room = self.rooms.get(what.generation)
        if room is None:  # it was cleared
            return
        room.announce(what.pages, what.aux_index, what.start)
        failure = room.disagreement(self._page_size)
        if failure is not None:
            self.give_up(room, failure)

    def supply(self, what: Supply) -> None:
        """Take the next pages; raises what :meth:`SendRoom.supply` does."""
        room = self.rooms.get(what.generation)
        if room is None or room.failure is not None:
            return
        room.waiting.append((room.supply(what.pages, what.state_indices), what.waits))
        self.go_on(room)

    def clear(self, room: SendRoom) -> None:
        """Free the id of a room; one that is not drained stays known until it is."""
        if self.present.get(room.room) is room:
            del self.present[room.room]
        if room.silent:
            self._forget(room)
        else:
            self._draining[room.generation] = room

    # --- on its way --------------------------------------------------------------------------

    def source_ready(self, what: SourceReady) -> None:
        """The source of the chunk that was waited for may be read, or never."""
        room = self.rooms.get(what.generation)
        if room is None or room.unready is None or room.over:
            return
        chunk, room.unready = room.unready, None
        if what.failure is not None:
            self.give_up(room, what.failure)
            return
        self._dispatch(room, chunk)
        self.go_on(room)

    def slot_written(self, what: SlotWritten) -> None:
        """Bytes of a delivery lie in a slot of who wants them: tell it, unless nobody wants them any more."""
        room = self._deliveries.get(what.delivery)
        rank = None if room is None or room.over else room.outstanding.get(what.delivery)
        peer = next((d.peer for d in room.destinations if d.peer.rank == rank), None) if room else None
        if room is None or rank is None or peer is None or peer.lost:
            self._turn.do(FreeSlot(what.route, what.identity, what.packed.slot, what.packed.number))
            return
        room.packed[rank] = room.packed.get(rank, 0) + 1
        self._answers.handed.hand(peer, what.packed)

    def delivery_ended(self, what: DeliveryEnded) -> None:
        """Take what a delivery came to."""
        room, failure = self._deliveries.get(what.delivery), what.failure
        if room is None or failure is None:
            return
        rank = room.outstanding[what.delivery]
        self.give_up(room, failure)
        peer = next(d.peer for d in room.destinations if d.peer.rank == rank)
        if failure.code is FailureCode.PEER_LOST and not peer.lost:
            self._turn.do(Suspect(peer.route, peer.identity, failure))

    def delivery_drained(self, what: DeliveryDrained) -> None:
        """No byte of a delivery can move any more."""
        room = self._deliveries.pop(what.delivery, None)
        if room is None:
            return
        del room.outstanding[what.delivery]
        self._settle(room)

    def row_read(self, what: RowRead) -> None:
        """The aux row is there: all is said."""
        room = self.rooms.get(what.generation)
        if room is None or room.over:
            return
        if what.failure is not None:
            self.give_up(room, what.failure)
        else:
            self._succeed(room, what.row)

    def examined(self, what: Examined) -> None:
        """Send the digests of what was sent."""
        room = self.rooms.get(what.generation)
        if room is None or room.over:
            return
        if what.failure is not None:
            self.give_up(room, what.failure)
            return
        room.undecided = {(route, d.chunk, d.part) for route, d in what.digests}
        packed = {d.peer.route: room.packed.get(d.peer.rank, 0) for d in room.destinations}
        for route, digests in what.digests:
            self._turn.post(route, attrs.evolve(digests, packed=packed.get(route, 0)))
        if not room.undecided:
            self._conclude(room)

    def verdict(self, peer: RemoteRank, verdict: Verdict) -> None:
        """Take what decode found; the last good one ends the room, as does the first bad one."""
        room = self.present.get(verdict.room)
        key = peer.route, verdict.chunk, verdict.part
        if room is None or room.undecided is None or key not in room.undecided:
            return
        if not room.is_promised_to(peer.route, verdict.generation):
            return
        room.undecided.discard(key)
        if verdict.failure is not None:
            self.give_up(room, verdict.failure.error())
        elif not room.undecided:
            self._conclude(room)

    # --- ends --------------------------------------------------------------------------------

    def give_up(self, room: SendRoom, failure: KVTransferError) -> None:
        """End a room as FAILED and tell who waits for it."""
        if not self._turn.end(room, failure):
            return
        room.waiting.clear()
        room.unready = None
        if room.outstanding:
            self._turn.do(Cancel(room.generation))
        for d in room.destinations:
            if not d.peer.lost:
                self._answers.refuse(
                    d.peer.route, room.room, d.wanted.generation, failure, drained=not room.outstanding
                )
        self._answers.tell_guests(room)
        if room.silent:
            self._forget_if_cleared(room)

    def all_silent(self) -> None:
        """The engine is closed: no byte moves any more."""
        for delivery in list(self._deliveries):
            self.delivery_drained(DeliveryDrained(delivery))

    def close(self, failure: KVTransferError) -> None:
        """End every room."""
        for room in list(self.present.values()):
            self.give_up(room, failure)

    # --- inside ------------------------------------------------------------------------------

    def go_on(self, room: SendRoom) -> None:
        """Let chunks leave until one must wait."""
        while room.complete and room.unready is None and room.waiting and not room.over:
            chunk, waits = room.waiting.popleft()
            if waits:
                room.unready = chunk
                self._turn.do(AwaitSource(room.generation, chunk))
            else:
                self._dispatch(room, chunk)

    def _dispatch(self, room: SendRoom, chunk: TransferKVChunk) -> None:
        if not room.chunks:
            room.first_at = self._turn.now
            room.rise(KVPoll.TRANSFERRING)
        room.chunks += 1
        for d in room.destinations:
            if not d.peer.facts.dummy:
                room.deliveries += 1
                delivery = delivery_id(room.generation, room.deliveries)
                room.outstanding[delivery] = d.peer.rank
                self._deliveries[delivery] = room
                where = d.peer.route
                self._turn.do(Ship(delivery, room.generation, chunk, where, d.wanted))
        if not room.outstanding:
            self._settle(room)

    def _settle(self, room: SendRoom) -> None:
        """End a room if nothing of it is left to do."""
        if room.failure is not None:
            if not room.outstanding:
                for d in room.destinations:
                    if not d.peer.lost:
                        self._turn.post(d.peer.route, Released(room.room, d.wanted.generation))
                self._turn.silence(room)
                self._forget_if_cleared(room)
        elif room.done and not room.concluding:
            room.concluding = True
            if self._verify:
                self._turn.do(Examine(room.generation))
            else:
                self._conclude(room)

    def _conclude(self, room: SendRoom) -> None:
        by_message = any(d.peer.facts.row_by_message for d in room.destinations)
        if by_message and room.aux_index is not None:
            self._turn.do(ReadRow(room.generation, room.aux_index))
        else:
            self._succeed(room, None)

    def _succeed(self, room: SendRoom, row: bytes | None) -> None:
        rows: dict[Route, AuxRow] = {}
        for d in room.destinations:
            if row is not None and d.peer.facts.row_by_message:
                message = rows[d.peer.route] = AuxRow(room.room, d.wanted.generation, row)
                size, limit = overweight(message, d.peer.facts.limit), d.peer.facts.limit
                if size is not None:
                    self.give_up(room, too_large("the aux row", room.room, size, limit, FailureCode.AUX))
                    return
        self._turn.end(room)
        for d in room.destinations:
            peer = d.peer
            if peer.lost or peer.facts.dummy:
                continue
            if peer.route in rows:
                self._turn.post(peer.route, rows[peer.route])
            packed = room.packed.get(peer.rank, 0)
            self._answers.succeed(peer.route, room.room, d.wanted.generation, packed)
        self._answers.tell_guests(room)
        self._forget_if_cleared(room)

    def lives_of(self, room: RoomId) -> list[SendRoom]:
        """Return all lives of an id that are not forgotten, in order."""
        present = self.present.get(room)
        lives = [one for one in self._draining.values() if one.room == room]
        return [*lives, present] if present is not None else lives

    def _forget_if_cleared(self, room: SendRoom) -> None:
        if room.cleared:
            self._forget(room)

    def _forget(self, room: SendRoom) -> None:
        self._draining.pop(room.generation, None)
        if self.rooms.pop(room.generation, None) is not None:
            self._turn.forget(room)
