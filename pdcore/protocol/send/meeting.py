"""What ranks that receive say of rooms that send: they have one open, ask for it, give it up, or inquire."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from pdcore.errors import KVTransferError
from pdcore.model import KVPoll
from pdcore.pairing.description import PeerDescription
from pdcore.protocol import awaited, words
from pdcore.protocol.actions import Promised
from pdcore.protocol.peer import RemoteRank
from pdcore.protocol.peers import Peers
from pdcore.protocol.room import Awaited, Turn
from pdcore.protocol.send.answers import Answers
from pdcore.protocol.send.early import Destination, Guest
from pdcore.protocol.send.lives import DOUBT, LATER, OF_A_LIFE, Life, Lives, Meaning, Word, meaning
from pdcore.protocol.send.send_room import SendRoom
from pdcore.protocol.send.sending import Sending
from pdcore.wire import Abort, Inquiry, Opened, Released, RequestMetadata, Route, Standing

__all__ = ["Meeting"]

PATIENCE = 1.0
"""Seconds in which prefill shall clear a room that succeeded, before another worker who asks is refused."""
MAX_SECONDS = 1e6
SWEEP = 1.0
"""Seconds between looks at what is too old to be remembered."""


class Meeting:
    """Brings what they say together with the rooms that it is about."""

    def __init__(
        self,
        turn: Turn,
        ours: PeerDescription,
        peers: Peers,
        answers: Answers,
        sending: Sending,
        counts: Counter[str],
    ) -> None:
        self._turn, self._peers, self._answers, self._sending = turn, peers, answers, sending
        self._where, self._page_size = ours.address, ours.layout.page_size
        self._dp = f"DP rank {ours.topology.dp_rank} of {ours.topology.dp_size}"
        self.lives, self._counts, self._sweep_at = Lives(), counts, 0.0
        self._later: deque[tuple[float, Callable[[], None]]] = deque()

    def take_early(self, room: SendRoom) -> None:
        """A room is open: take what came for it before."""
        in_doubt = self.lives.opened(room, self._turn.now)
        waiting = deque(self._answers.early.take(room.room))
        try:
            while waiting:
                self._receive(waiting[0])
                waiting.popleft()
        except Exception as error:  # a defect: nobody else would tell them
            for d in waiting:
                failure = words.broken("prefill", room.room, error)
                self._answers.refuse(d.peer.route, room.room, d.wanted.generation, failure)
            raise
        if in_doubt:
            self._put_off(partial(self._believe, room))

    def cleared(self, room: SendRoom) -> None:
        """A room is cleared: remember it for who comes late."""
        if not room.cleared:
            self.lives.cleared(room, self._turn.now)

    def close(self, failure: KVTransferError) -> None:
        """Refuse all who wait for a room that is not open."""
        for d in self._answers.early.drop(lambda _: True):
            self._answers.refuse(d.peer.route, d.wanted.room, d.wanted.generation, failure)

    def awaited(self, room: SendRoom) -> Awaited:
        """Return what a room waits for now, and of whom."""
        guests = [guest.peer.identity for guest in self._answers.guests.of(room.room)]
        return awaited.of_sending(room, guests, len(self._peers.by_route))

    def asked(self, peer: RemoteRank, wanted: RequestMetadata) -> None:
        """Take a request."""
        if not wanted.remaining > 0:
            self._counts["stale"] += 1
            return
        self._answers.guests.came(wanted.room, peer.route, wanted.generation)
        now = self._turn.now
        self._receive(Destination(peer, wanted, now + min(wanted.remaining, MAX_SECONDS), now))

    def not_paired(self, route: Route, wanted: RequestMetadata) -> None:
        """Refuse a request of somebody who is not paired."""
        failure = words.not_paired(wanted.room, self._where)
        self._answers.refuse(route, wanted.room, wanted.generation, failure)

    def opened(self, peer: RemoteRank, opened: Opened, arrived: float | None = None) -> None:
        """Take the word that a rank has a room open; ``arrived`` is when it came, if not now."""
        now = self._turn.now
        arrived = now if arrived is None else arrived
        if peer.lost:
            return
        word = Word(opened.room, peer.route, peer.rank, opened.generation, arrived - opened.age)
        room = self._sending.present.get(word.room)
        what, life = self._meaning(word, room)
        if what is Meaning.OVER and life is not None:
            if now - arrived < DOUBT and life.in_doubt(word):
                guest = Guest(peer, word.generation, now)
                self._answers.guests.add(word.room, guest)
                self._put_off(partial(self._look_again, guest, opened))
                return
            self.lives.hear(word, life)
        elif what not in (Meaning.OLD, Meaning.TAKEN):
            self.lives.wanted_again(word, life)
        if life is not None and what in (Meaning.OVER, Meaning.TAKEN):
            failure = words.ended_before(life, word.rank, now)
            self._answers.refuse(peer.route, word.room, word.generation, failure)
        elif what is not Meaning.OLD:  # it has asked since
            self._supersede(what, room)
            self._answers.guests.add(word.room, Guest(peer, word.generation, now))

    def aborted(self, peer: RemoteRank, abort: Abort) -> None:
        """Take an abort; it is answered now, or when the room's last write is drained."""
        room, route, generation = abort.room, peer.route, abort.generation
        self._answers.guests.came(room, route, generation)
        if self._answers.early.drop_one(route, room, generation) or not abort.asked:
            self.given_up(route, peer.rank, abort)
        for mine in self._sending.lives_of(room):
            if mine.is_promised_to(route, generation):
                self._sending.give_up(mine, abort.failure.error())
                if not mine.silent:
                    return
        self._turn.post(route, Released(room, generation))

    def given_up(self, route: Route, rank: int, abort: Abort) -> None:
        """Take the word that a rank gave up what it has not asked for, or only of a room not opened yet."""
        now, room, failure = self._turn.now, self._sending.present.get(abort.room), abort.failure.error()
        word = Word(abort.room, route, rank, abort.generation, now - abort.age, now - abort.ended)
        failure = failure if room is None else room.first_reason(word, failure)
        what, life = self._meaning(word, room)
        if what in LATER:
            self.lives.given_up(word, failure, now)
        elif what is Meaning.PRESENT and room is not None and room.may_be_older(word):
            room.doubts[word.rank] = (word, failure)
            self._put_off(partial(self._believe, room))
            return
        elif life is not None and what in OF_A_LIFE:
            if life.in_doubt(word):
                self._doubt(word, failure, room)
            self.lives.hear(word, life)
        if room is not None and what in (Meaning.PRESENT, Meaning.SUPERSEDED):
            self._sending.give_up(room, failure)

    def inquired(self, peer: RemoteRank, inquiry: Inquiry) -> None:
        """Tell what this side waits for in a room that a rank asked for, or how it ended."""
        room, route, generation = inquiry.room, peer.route, inquiry.generation
        if self._answers.early.holds(route, room, generation):
            what = f"its scheduler: the room is not opened there, at {self._dp}; "
            present = self._sending.present.get(room)
            more = "an earlier request with its id is not cleared" if present else "the request is kept"
            self._turn.post(route, Standing(room, generation, self._answers.rank, what + more))
            return
        mine = [one for one in self._sending.lives_of(room) if one.is_promised_to(route, generation)]
        if mine and not mine[-1].over:
            waits_for = self.awaited(mine[-1]).what
            self._turn.post(route, Standing(room, generation, self._answers.rank, waits_for))
            return
        lives: list[Life] = [*self.lives.earlier(room), *mine]
        life = next((one for one in reversed(lives) if one.is_promised_to(route, generation)), None)
        if life is not None and life.status is KVPoll.SUCCESS:
            self._answers.succeed(route, room, generation, life.packed.get(peer.rank, 0))
            return
        failure = (life.failure if life is not None else None) or words.unheard_of(room)
        self._answers.refuse(route, room, generation, failure, drained=all(one.silent for one in mine))

    def peer_lost(self, peer: RemoteRank, why: str) -> int:
        """Fail what was promised to a peer that is lost; return how many rooms that were."""
        self._answers.handed.lost(peer)
        affected = [r for r in self._sending.present.values() if any(d.peer is peer for d in r.destinations)]
        early, now = self._answers.early.drop(lambda d: d.peer is peer), self._turn.now
        unmet = {**self._answers.guests.lost(peer), **{d.wanted.room: d.wanted.generation for d in early}}
        for id_, generation in unmet.items():
            failure = peer.loss(id_, f"{why}, before prefill and decode had met in the room")
            room = self._sending.present.get(id_)
            word = Word(id_, peer.route, peer.rank, generation, now, now)
            if room is None or room.over:
                self.lives.given_up(word, failure, now)
            elif peer.rank not in room.promised:
                self.lives.hear(word, room)
                affected.append(room)
        for room in affected:
            self._sending.give_up(room, peer.loss(room.room, why))
        return len(affected)

    def tick(self) -> None:
        """Settle what was put off, say again what was not answered, and forget what is too old."""
        now = self._turn.now
        self._answers.handed.tick()
        while self._later and self._later[0][0] <= now:
            self._later.popleft()[1]()
        if self._answers.early:
            self._answers.early.drop(lambda d: d.deadline <= now)
            late = now - PATIENCE
            for d in self._answers.early.drop(lambda d: d.arrived_at < late and self._is_contested(d)):
                room = self._sending.present[d.wanted.room]
                failure = words.taken(room, d.peer.rank)
                self._answers.refuse(d.peer.route, room.room, d.wanted.generation, failure)
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP
            self.lives.sweep(now)
            self._answers.guests.sweep(now)

    # --- inside ------------------------------------------------------------------------------

    def _receive(self, destination: Destination) -> None:
        """Have a room take a request, keep it for a later life, or tell decode why neither can be."""
        peer, wanted, now = destination.peer, destination.wanted, self._turn.now
        if peer.lost:
            return
        arrived = destination.arrived_at
        word = Word(wanted.room, peer.route, peer.rank, wanted.generation, arrived - wanted.age)
        room = self._sending.present.get(word.room)
        what, life = self._meaning(word, room)
        if what is Meaning.OVER and life is not None and now - arrived < DOUBT and life.in_doubt(word):
            what = Meaning.NEXT
            self._put_off(partial(self._ask_again, destination))
        if what in LATER:
            self._keep(destination, word)
            self._supersede(what, room)
        elif life is None or what is Meaning.OLD:
            self._counts["stale"] += 1
        else:
            if what in OF_A_LIFE:
                self.lives.hear(word, life)
            if what is Meaning.PRESENT and room is not None:
                self._accept(room, destination)
            if not life.is_promised_to(word.route, word.generation):
                failure = words.ended_before(life, word.rank, now)
                self._answers.refuse(peer.route, word.room, word.generation, failure)

    def _keep(self, destination: Destination, word: Word) -> None:
        """Keep a request for a later life of its room; what gives way to it is told."""
        self.lives.wanted_again(word)
        for other, failure in self._answers.early.put(destination):
            self._answers.refuse(other.peer.route, other.wanted.room, other.wanted.generation, failure)

    def _accept(self, room: SendRoom, destination: Destination) -> None:
        """Take a destination; the room waits for all the ranks that ask this one."""
        peer, wanted = destination.peer, destination.wanted
        if room.status is not KVPoll.BOOTSTRAPPING or room.complete or peer.rank in room.promised:
            return
        room.destinations.append(destination)
        self._turn.do(Promised(room.generation, peer.identity, wanted))
        room.promised[peer.rank] = (peer.route, wanted.generation, peer.identity)
        failure = room.disagreement(self._page_size)
        room.complete = failure is None and len(room.destinations) >= len(peer.facts.asking)
        if destination.deadline < room.deadline:
            self._turn.hurry(room, destination.deadline)
        if failure is not None:
            self._sending.give_up(room, failure)
        elif room.complete:
            room.met_at = self._turn.now
            room.rise(KVPoll.WAITING_FOR_INPUT)
            self._sending.go_on(room)

    def _meaning(self, word: Word, room: SendRoom | None) -> tuple[Meaning, Life | None]:
        return meaning(word, room, self.lives.earlier(word.room), self._turn.now)

    def _look_again(self, guest: Guest, opened: Opened) -> None:
        if self._answers.guests.has(opened.room, guest):
            self._answers.guests.came(opened.room, guest.peer.route, guest.generation)
            self.opened(guest.peer, opened, guest.heard_at)

    def _ask_again(self, destination: Destination) -> None:
        if self._answers.early.drop(lambda d: d is destination):
            self._receive(destination)

    def _doubt(self, word: Word, failure: KVTransferError, room: SendRoom | None) -> None:
        if room is None:
            self.lives.given_up(word, failure, self._turn.now, DOUBT)
        elif not room.may_be_older(word):
            room.doubts[word.rank] = (word, failure)
            self._put_off(partial(self._believe, room))

    def _believe(self, room: SendRoom) -> None:
        failure = room.believe()
        if failure is not None:
            self._sending.give_up(room, failure)

    def _put_off(self, action: Callable[[], None]) -> None:
        """Do this a moment later: an id is given out again only once both sides have cleared it."""
        self._later.append((self._turn.now + DOUBT, action))

    def _supersede(self, what: Meaning, room: SendRoom | None) -> None:
        if what is Meaning.SUPERSEDED and room is not None:
            self._sending.give_up(room, words.superseded(room.room))

    def _is_contested(self, destination: Destination) -> bool:
        """Whether a request waits for a room that another worker got, and this side does not clear."""
        room = self._sending.present.get(destination.wanted.room)
        return room is not None and room.status is KVPoll.SUCCESS and destination.peer.route not in room.heard
