"""One side of the protocol: a stimulus in, actions out. Sends, receives, or both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from pdcore.errors import KVTransferError, RoomError
from pdcore.model import Generation, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.protocol import stimuli as s
from pdcore.protocol import words
from pdcore.protocol.actions import Action
from pdcore.protocol.peer import Fit, RemoteRank, Rooms
from pdcore.protocol.peers import Peers
from pdcore.protocol.receive.receive_room import ReceiveRoom
from pdcore.protocol.receive.receiving import Receiving
from pdcore.protocol.room import Awaited, Room, Turn
from pdcore.protocol.send.answers import Answers
from pdcore.protocol.send.meeting import Meeting
from pdcore.protocol.send.send_room import SendRoom
from pdcore.protocol.send.sending import Sending
from pdcore.protocol.settings import Settings
from pdcore.wire import (
    Abort,
    AuxRow,
    Bye,
    Digests,
    Heartbeat,
    Inquiry,
    Opened,
    Packed,
    PairReply,
    PairRequest,
    Quiet,
    Released,
    RequestMetadata,
    RoomStatus,
    Route,
    Standing,
    Unpacked,
    Verdict,
)

__all__ = ["Machine", "Settings"]


OF_A_ROOM = RoomStatus | AuxRow | Digests | Released | Standing | Packed | Unpacked | Quiet
WHILE_CONNECTING = PairReply | Abort | Opened | Inquiry | OF_A_ROOM
"""What may come of a rank while the engine is connected to it; of rooms, if it had paired before."""


class Machine(Rooms):
    """``ours`` is what this side says of itself, ``fit`` tells what others mean to it. ``counts`` has how
    many messages were stale or unexpected.

    ``handle`` is called by one thread at a time, with moments that do not go back.
    """

    def __init__(
        self,
        ours: PeerDescription,
        fit: Fit,
        settings: Settings,
        counts: Counter[str] | None = None,
    ) -> None:
        turn = self._turn = Turn()
        self.ours = ours
        self.counts: Counter[str] = Counter() if counts is None else counts
        self.peers = Peers(turn, ours, fit, settings.pairing, self)
        rank, page_size = ours.topology.unique_rank, ours.layout.page_size
        self.answers = Answers(turn, rank, settings.interval)
        self.sending = Sending(turn, self.answers, page_size, verify=settings.verify)
        self.meeting = Meeting(turn, ours, self.peers, self.answers, self.sending, self.counts)
        self.receiving = Receiving(turn, self.peers, settings.interval, ours.max_message_bytes, self.counts)
        self._closed: KVTransferError | None = None
        self._handlers: dict[type, Callable[[Any], object]] = {
            s.OpenSend: self._open_send,
            s.OpenReceive: self._open_receive,
            s.AnnouncePages: self.sending.announce,
            s.Supply: self.sending.supply,
            s.SourceReady: self.sending.source_ready,
            s.Choose: self.receiving.choose,
            s.Place: self.receiving.place,
            s.GiveUp: self._give_up,
            s.Clear: self._clear,
            s.Heard: self._heard,
            s.GroupFound: self.peers.found,
            s.Trouble: lambda what: self.peers.trouble.__setitem__(what.bootstrap, what.why),
            s.GroupFailed: lambda what: self.peers.not_found(what.key, what.failure),
            s.PeerConnected: self._connected,
            s.PeerFailed: self._failed,
            s.PeerGone: self._lost,
            s.Reconnected: self._reconnected,
            s.AllSilent: self._all_silent,
            s.WriterSilent: lambda what: self.receiving.silent(what.identity, what.upto),
            s.DeliveryEnded: self.sending.delivery_ended,
            s.DeliveryDrained: self.sending.delivery_drained,
            s.SlotWritten: self.sending.slot_written,
            s.Examined: self.sending.examined,
            s.Compared: self.receiving.compared,
            s.BytesUnpacked: self.receiving.unpacked,
            s.RingQuiet: lambda what: self.peers.tell(what.identity, Quiet(what.ring), what.route),
            s.RowRead: self.sending.row_read,
            s.RowWritten: self.receiving.row_written,
            s.RowChecked: self.receiving.row_checked,
            s.Tick: self._tick,
            s.Close: self._close,
        }
        self._listeners = self._hearing()

    def _hearing(self) -> dict[type, Callable[[RemoteRank, Any], object]]:
        """Return who takes what a peer says."""
        return {
            RequestMetadata: self.meeting.asked,
            Opened: self.meeting.opened,
            Abort: self.meeting.aborted,
            Inquiry: self.meeting.inquired,
            Verdict: self.sending.verdict,
            RoomStatus: self.receiving.take,
            AuxRow: self.receiving.take,
            Digests: self.receiving.take,
            Released: self.receiving.take,
            Packed: self.receiving.take,
            Unpacked: self.answers.handed.taken,
            Quiet: lambda peer, what: self.peers.rings.quiet(peer.identity, what.ring),
            Standing: self.receiving.take,
            PairReply: self.peers.answered,
        }

    def handle(self, stimulus: s.Stimulus, now: float) -> list[Action]:
        """Take what happened at a moment of the clock; return what shall be done, in order.

        Raises:
            RoomError: the scheduler's call is not one that its room can have now; nothing has changed.
        """
        turn = self._turn
        turn.now, turn.todo = now, []
        self._handlers[type(stimulus)](stimulus)
        return turn.actions()

    def recover(self, stimulus: s.Stimulus, error: BaseException) -> list[Action]:
        """Something is wrong with this machine: a stimulus made it raise. End the room that it was about, and
        tell who waits; return what shall be done."""
        turn, side = self._turn, self.ours.role.value
        what: Any = stimulus.message if isinstance(stimulus, s.Heard) else stimulus
        generation, id_ = getattr(what, "generation", Generation(0)), getattr(what, "room", RoomId(-1))
        room, sent = self.receiving.rooms.get(generation), self.sending.rooms.get(generation)
        if isinstance(stimulus, s.Heard):
            sent = self.sending.present.get(id_)
        if sent is not None:
            self.sending.give_up(sent, words.broken(side, sent.room, error))
        elif room is not None:
            self.receiving.give_up(room, words.broken(side, room.room, error))
        if isinstance(stimulus, s.Heard) and isinstance(what, RequestMetadata):
            failure = words.broken(side, what.room, error)
            self.answers.refuse(stimulus.route, what.room, what.generation, failure)
        return turn.actions()

    @property
    def due(self) -> float | None:
        """The moment at which the next room misses its deadline, or None."""
        return self._turn.due

    def awaited(self, room: Room) -> Awaited:
        """Return what a room waits for now, and of whom."""
        if isinstance(room, SendRoom):
            return self.meeting.awaited(room)
        assert isinstance(room, ReceiveRoom)
        return self.receiving.awaited(room)

    def room(self, generation: Generation) -> Room | None:
        """Return a room that is not forgotten."""
        return self.sending.rooms.get(generation) or self.receiving.rooms.get(generation)

    # --- what rooms do when a peer comes and goes --------------------------------------------

    def paired(self, room: ReceiveRoom) -> None:
        self.receiving.paired(room)

    def unpaired(self, room: ReceiveRoom, failure: KVTransferError) -> None:
        self.receiving.unpaired(room, failure)

    def peer_lost(self, peer: RemoteRank, failure: KVTransferError) -> int:
        if peer.dialled:
            return self.receiving.peer_lost(peer, failure)
        return self.meeting.peer_lost(peer, failure.there_is)

    def opened_again(self, room: Room) -> bool:
        return self.receiving.present.get(room.room, room) is not room

    # --- stimuli -----------------------------------------------------------------------------

    def _open_send(self, what: s.OpenSend) -> None:
        self._require_open(what.room)
        self.meeting.take_early(self.sending.open(what))

    def _open_receive(self, what: s.OpenReceive) -> None:
        self._require_open(what.room)
        self.receiving.open(what)

    def _require_open(self, room: int) -> None:
        if (why := self._closed) is not None:
            raise RoomError(f"room {room} cannot be opened", why.there_is, why.to_do)

    def _give_up(self, what: s.GiveUp) -> None:
        room = self.room(what.generation)
        if isinstance(room, SendRoom):
            self.sending.give_up(room, what.failure)
        elif isinstance(room, ReceiveRoom):
            self.receiving.give_up(room, what.failure)

    def _clear(self, what: s.Clear) -> None:
        room = self.room(what.generation)
        if isinstance(room, SendRoom):
            if not room.over:
                self.sending.give_up(room, words.aborted("prefill", room.room))
            self.meeting.cleared(room)
            self.sending.clear(room)
        elif isinstance(room, ReceiveRoom):
            if not room.over:
                self.receiving.give_up(room, words.aborted("decode", room.room))
            self.receiving.clear(room)

    def _heard(self, what: s.Heard) -> None:
        route, message = what.route, what.message
        peer, listener = self.peers.by_route.get(route), self._listeners.get(type(message))
        if listener is not None and peer is not None and peer.ready:
            listener(peer, message)
        elif isinstance(message, PairRequest) and (peer is None or not peer.dialled):
            if self._closed is None and not self.peers.asked_to_pair(route, message):
                self.counts["unexpected"] += 1
        elif isinstance(message, Bye):
            if peer is not None:
                self.peers.left(peer, message)
                if message.drained and message.incarnation == peer.identity.incarnation:  # not another life
                    self.receiving.silent(peer.identity)
        elif isinstance(message, Heartbeat) and peer is not None:
            if peer.dialled and message.incarnation != peer.identity.incarnation:
                self.counts["stale"] += 1
                self.peers.replaced(peer, message.incarnation)
        elif peer is None or not (peer.ready or isinstance(message, WHILE_CONNECTING)):
            self._from_a_stranger(route, peer, message)
        elif listener is not None:
            listener(peer, message)
        else:
            self.counts["unexpected"] += 1

    def _from_a_stranger(self, route: Route, peer: RemoteRank | None, message: object) -> None:
        """Somebody who is not paired speaks: with an answer for a room, if it is about one."""
        if isinstance(message, RequestMetadata):
            self.meeting.not_paired(route, message)
        elif isinstance(message, Abort) and (rank := self.peers.strangers.refused.get(route)) is not None:
            self.meeting.given_up(route, rank, message)
            return
        elif not isinstance(message, Abort | Opened | Inquiry | Heartbeat):
            self.counts["stale"] += 1
            return
        if peer is None:
            self.peers.strangers.disown(route)

    def _connected(self, what: s.PeerConnected) -> None:
        if (peer := self.peers.at(what.route, what.identity)) is not None:
            self.peers.connected(peer)

    def _failed(self, what: s.PeerFailed) -> None:
        if (peer := self.peers.at(what.route, what.identity)) is not None:
            self.peers.failed(peer, what.failure)

    def _lost(self, what: s.PeerGone) -> None:
        if (peer := self.peers.at(what.route, what.identity)) is not None:
            self.peers.lose(peer, words.gone(peer.identity, what.why))

    def _reconnected(self, what: s.Reconnected) -> None:
        peer = self.peers.by_route.get(what.route)
        if peer is not None and peer.ready:
            self.receiving.reconnected(peer)

    def _tick(self, _: s.Tick) -> None:
        for room in self._turn.overdue():
            failure = room.missed(self.awaited(room), self._turn.now)
            if isinstance(room, SendRoom):
                self.sending.give_up(room, failure)
            elif isinstance(room, ReceiveRoom):
                self.receiving.give_up(room, failure)
        self.peers.tick()
        self.meeting.tick()
        self.receiving.tick()

    def _all_silent(self, _: s.AllSilent) -> None:
        self.sending.all_silent()
        self.receiving.all_silent()

    def _close(self, what: s.Close) -> None:
        self._closed = what.failure
        self.sending.close(what.failure)
        self.meeting.close(what.failure)
        self.receiving.close(what.failure)
