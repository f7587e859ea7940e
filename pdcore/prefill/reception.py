"""Where what decode says of rooms meets those that prefill has opened, has yet to open, or has ended."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from pdcore.config.records import MAX_SECONDS
from pdcore.errors import KVTransferError
from pdcore.model import Deadline, Generation, KVPoll, PeerIdentity, RoomId
from pdcore.pairing.topology import Topology
from pdcore.prefill.answers import Answers, ended_before, superseded, taken, unheard_of
from pdcore.prefill.doubts import Doubts
from pdcore.prefill.early_requests import EarlyRequests
from pdcore.prefill.expected import Expected, Guest
from pdcore.prefill.link import Destination, PeerLink
from pdcore.prefill.lives import DOUBT, Life, Lives, Meaning, Word, meaning
from pdcore.prefill.sender import KVSender
from pdcore.prefill.senders import Senders
from pdcore.wire import Abort, Inquiry, Message, Opened, Released, RequestMetadata, Route

__all__ = ["OfARoom", "Reception"]

PATIENCE = 1.0
"""Seconds in which prefill shall clear a room that succeeded, before another worker who asks is refused."""

_log = logging.getLogger("pdcore.prefill")

Told = Callable[[PeerLink, Message], None]

OfARoom = Abort | Opened | Inquiry
"""What a decode rank says of one room, but that it asks for it."""


class Reception:
    """Takes what paired decode ranks say on the control thread, and rooms as they open, end and are cleared.

    ``post`` tells a peer unless it is lost, ``counts`` are the channel's, ``topology`` is this prefill
    rank's. The lock guards what is remembered of lives, and has no request parked once its room took those.
    """

    def __init__(
        self,
        senders: Senders,
        parking: EarlyRequests,
        topology: Topology,
        answers: Answers,
        post: Told,
        counts: Counter[str],
    ) -> None:
        self._lock = threading.Lock()
        self._senders, self._parking, self._expected = senders, parking, Expected()
        self._lives, self._doubts, self._answers = Lives(time.monotonic), Doubts(), answers
        self._post, self._counts, self._topology = post, counts, topology

    # --- rooms -----------------------------------------------------------------------------

    def opened(self, sender: KVSender) -> None:
        """Take a room that was opened, and what came for it before."""
        with self._lock:
            self._senders.add(sender)
            in_doubt = self._lives.opened(sender.life)
        for parked in self._parking.take(sender.room):
            try:
                self._receive(parked)
            except Exception:  # the room has failed, and whoever opens it shall have it
                _log.exception("room %s could not take a request", sender.room)
        for failure in self._parking.handed_over(sender.life):
            sender.give_up(failure)  # which tells decode that nothing was sent
        if in_doubt:
            self._doubts.put_off(partial(self._believe, sender))

    def ended(self, sender: KVSender) -> None:
        """A room has ended: tell those who have it open and did not ask."""
        life, now = sender.life, time.monotonic()
        for guest in self._expected.take(sender.room):
            with self._lock:
                life.told(guest.link.route, guest.link.rank, guest.generation)
            failure = ended_before(life, guest.link.rank, now)
            self._refuse(guest.link, sender.room, guest.generation, failure)

    def cleared(self, sender: KVSender) -> None:
        """Free the id of a room."""
        with self._lock:
            if self._senders.clear(sender):
                self._lives.cleared(sender.life)

    # --- what decode says ------------------------------------------------------------------

    def asked(self, link: PeerLink, wanted: RequestMetadata) -> None:
        """Take a request."""
        if not wanted.remaining > 0:
            self._counts["stale"] += 1
            return
        self._expected.came(wanted.room, link.route)
        self._receive(Destination(link, wanted, Deadline.after(min(wanted.remaining, MAX_SECONDS))))

    def take(self, link: PeerLink, word: OfARoom) -> None:
        """Take anything else that a decode rank says of a room."""
        if isinstance(word, Opened):
            self.expected(link, word)
        elif isinstance(word, Inquiry):
            self._post(link, self.standing(link, word))
        elif (answer := self.aborted(link, word)) is not None:
            self._post(link, answer)

    def expected(self, link: PeerLink, opened: Opened, arrived: float = 0.0) -> None:
        """Take the word that a decode rank has a room open; ``arrived`` is when it came, if not now."""
        now = time.monotonic()
        word = Word(opened.room, link.route, link.rank, opened.generation, (arrived or now) - opened.age)
        with self._lock:
            sender = self._senders.get(word.room)
            what, life = self._meaning(word, sender, now)
            if what is Meaning.OVER and life is not None and self._doubts.about(word, life, arrived or now):
                self._doubts.put_off(partial(self.expected, link, opened, arrived or now))
                return
            if what is Meaning.OVER and life is not None:
                self._lives.hear(word, life)
            elif what not in (Meaning.OLD, Meaning.TAKEN):
                self._lives.wanted_again(word, life)
        if life is not None and what in (Meaning.OVER, Meaning.TAKEN):
            self._refuse(link, word.room, word.generation, ended_before(life, word.rank, now))
        elif what is not Meaning.OLD:  # it has asked since
            self._supersede(what, sender)
            self._expected.add(word.room, Guest(link, word.generation))
            if what is Meaning.PRESENT and sender is not None and sender.life.over:
                self.ended(sender)  # meanwhile

    def aborted(self, link: PeerLink, abort: Abort) -> Released | None:
        """Take an abort; return the answer, None if the room's last write, or who opens it, will bring it."""
        room, route, generation = abort.room, link.route, abort.generation
        parked = self._parking.drop_one(route, room, generation)
        self._expected.came(room, route)
        if parked or not abort.asked:
            self.given_up(route, link.rank, abort)
        later = self._parking.give_up(route, room, generation, abort.failure.error())
        for sender in self._senders.of(room):
            if sender.life.is_promised_to(route, generation):
                sender.give_up(abort.failure.error())
                later = not sender.drained
        return None if later else Released(room, generation)

    def given_up(self, route: Route, rank: int, abort: Abort) -> None:
        """Take the word that decode gave up what it has not asked for, or only of a room not opened yet."""
        now, failure = time.monotonic(), abort.failure.error()
        word = Word(abort.room, route, rank, abort.generation, now - abort.age, now - abort.ended)
        with self._lock:
            sender = self._senders.get(word.room)
            what, life = self._meaning(word, sender, now)
            if what in (Meaning.NEXT, Meaning.CONTESTED, Meaning.SUPERSEDED):
                self._lives.given_up(word, failure)
            elif life is not None and what in (Meaning.OVER, Meaning.PRESENT):
                if life.in_doubt(word):
                    self._doubt(word, failure, sender)
                self._lives.hear(word, life)
        if sender is not None and what in (Meaning.PRESENT, Meaning.SUPERSEDED):
            sender.give_up(failure)

    def guests(self, room: RoomId) -> list[PeerIdentity]:
        """Return the decode ranks that have a room open and did not ask for it."""
        return [guest.link.identity for guest in self._expected.of(room)]

    def standing(self, link: PeerLink, inquiry: Inquiry) -> Message:
        """Return what prefill waits for in a room that a decode rank asked for, or how it ended."""
        room, route, generation = inquiry.room, link.route, inquiry.generation
        present = self._senders.get(room)
        if self._parking.holds(route, room, generation):
            earlier = present is not None and "an earlier request with its id is not cleared"
            dp = f"DP rank {self._topology.dp_rank} of {self._topology.dp_size}"
            what = f"its scheduler: the room is not opened there, at {dp}; {earlier or 'the request is kept'}"
            return self._answers.stands(room, generation, what)
        senders = [s for s in self._senders.of(room) if s.life.is_promised_to(route, generation)]
        if senders and not senders[-1].life.over:
            return self._answers.stands(room, generation, senders[-1].awaited().what)
        with self._lock:
            lives = [*self._lives.earlier(room), *(s.life for s in senders)]
        life = next((one for one in reversed(lives) if one.is_promised_to(route, generation)), None)
        if life is not None and life.record.status is KVPoll.SUCCESS:
            return self._answers.succeeded(room, generation)
        failure = life.record.failure if life is not None else None
        drained = all(sender.drained for sender in senders)
        return self._answers.failed(room, generation, failure or unheard_of(room), drained=drained)

    def lost(self, link: PeerLink, why: str) -> int:
        """Fail what was promised to a lost peer; return how many rooms that were."""
        affected = self._senders.using(link)
        parked, now = self._parking.drop(lambda d: d.link is link), time.monotonic()
        unmet = {**self._expected.lost(link), **{d.wanted.room: d.wanted.generation for d in parked}}
        for room, generation in unmet.items():
            failure = link.loss(room, f"{why}, before prefill and decode had met in the room")
            with self._lock:
                sender = self._senders.get(room)
                word = Word(room, link.route, link.rank, generation, now, now)
                if sender is None or sender.life.over:
                    self._lives.given_up(word, failure)
                elif link.rank not in sender.life.promised:
                    self._lives.hear(word, sender.life)
                    affected.append(sender)
        for sender in affected:
            sender.give_up(link.loss(sender.room, why))
        return len(affected)

    # --- from time to time, and at the end -------------------------------------------------

    def sweep(self) -> None:
        """Forget what is too old; refuse those who wait for a room that another worker got."""
        self._parking.drop(lambda d: d.deadline.expired)
        self._doubts.settle()
        late = time.monotonic() - PATIENCE
        for destination in self._parking.drop(lambda d: d.arrived_at < late and self._is_contested(d)):
            sender = self._senders.get(destination.wanted.room)
            if sender is None:
                self._receive(destination)
            else:
                failure = taken(sender.life, destination.link.rank)
                self._refuse(destination.link, sender.room, destination.wanted.generation, failure)
        self._senders.sweep()
        with self._lock:
            self._lives.sweep()

    def close(self, failure: KVTransferError) -> None:
        """Refuse all who wait for a room that is not open."""
        for destination in self._parking.drop(lambda _: True):
            wanted = destination.wanted
            self._refuse(destination.link, wanted.room, wanted.generation, failure)

    # --- inside ----------------------------------------------------------------------------

    def _receive(self, destination: Destination) -> None:
        """Have a room take a request, park it for a later life, or tell decode why neither can be."""
        link, wanted, now = destination.link, destination.wanted, time.monotonic()
        arrived = destination.arrived_at
        word = Word(wanted.room, link.route, link.rank, wanted.generation, arrived - wanted.age)
        evicted = []
        with self._lock:
            sender = self._senders.get(word.room)
            what, life = self._meaning(word, sender, now)
            if what is Meaning.OVER and life is not None and self._doubts.about(word, life, arrived):
                what = Meaning.NEXT
                self._doubts.put_off(partial(self._ask_again, destination))
            if life is not None and what in (Meaning.OVER, Meaning.PRESENT):
                self._lives.hear(word, life)
            elif what in (Meaning.NEXT, Meaning.CONTESTED, Meaning.SUPERSEDED):
                self._lives.wanted_again(word)
                evicted = self._parking.put(destination)
        for other, failure in evicted:
            self._refuse(other.link, other.wanted.room, other.wanted.generation, failure)
        self._supersede(what, sender)
        if what is Meaning.OLD:
            self._counts["stale"] += 1
        if life is None or what not in (Meaning.PRESENT, Meaning.OVER, Meaning.TAKEN):
            return
        try:
            if what is Meaning.PRESENT and sender is not None:
                sender.attempt(partial(sender.accept, destination))
        finally:
            if not life.is_promised_to(word.route, word.generation):
                self._refuse(link, word.room, word.generation, ended_before(life, word.rank, now))

    def _meaning(self, word: Word, sender: KVSender | None, now: float) -> tuple[Meaning, Life | None]:
        present = sender.life if sender is not None else None
        return meaning(word, present, self._lives.earlier(word.room), now)

    def _ask_again(self, destination: Destination) -> None:
        for parked in self._parking.drop(lambda d: d is destination):
            self._receive(parked)

    def _doubt(self, word: Word, failure: KVTransferError, sender: KVSender | None) -> None:
        if sender is None:
            self._lives.given_up(word, failure, DOUBT)
        elif word.ended_at is not None and word.ended_at > sender.record.opened_at:
            sender.life.doubts[word.rank] = (word, failure)
            self._doubts.put_off(partial(self._believe, sender))

    def _believe(self, sender: KVSender) -> None:
        with self._lock:
            failure = sender.life.believe()
        if failure is not None:
            sender.give_up(failure)

    def _supersede(self, what: Meaning, sender: KVSender | None) -> None:
        if what is Meaning.SUPERSEDED and sender is not None:
            sender.give_up(superseded(sender.room))

    def _is_contested(self, destination: Destination) -> bool:
        """Whether a parked request waits for a room that another worker got, and prefill does not clear."""
        sender = self._senders.get(destination.wanted.room)
        return (
            sender is not None
            and sender.record.status is KVPoll.SUCCESS
            and destination.link.route not in sender.life.heard
        )

    def _refuse(self, link: PeerLink, room: RoomId, generation: Generation, failure: KVTransferError) -> None:
        self._parking.drop_one(link.route, room, generation)
        self._post(link, self._answers.failed(room, generation, failure))
