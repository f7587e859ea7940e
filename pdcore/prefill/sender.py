"""KVSender: one request on the prefill side."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

import numpy.typing as npt

from pdcore.arguments import require_deadline
from pdcore.errors import FailureCode, KVTransferError
from pdcore.events.metrics import Moments, RequestMetrics
from pdcore.model import Deadline, KVPoll
from pdcore.prefill import waits_for as awaited
from pdcore.prefill.delivery import Delivery, TransferKVChunk
from pdcore.prefill.gate import ChunkGate
from pdcore.prefill.host import SenderHost
from pdcore.prefill.link import Destination, PeerLink
from pdcore.prefill.lives import Life
from pdcore.prefill.readiness import SourceReadiness
from pdcore.prefill.sent import Sent
from pdcore.prefill.supply import Supply
from pdcore.rooms.handle import NOT_ENDED, RoomHandle, raises_or_fails
from pdcore.rooms.status import Awaited, Room
from pdcore.wire import Message, Released

__all__ = ["KVSender"]


class KVSender(RoomHandle):
    """Sends the KV cache of one room. Made by ``PrefillManager.sender``; one scheduler thread calls it.

    The lock guards ``_destinations``, ``_unfinished`` and ``_in_flight``, and writes what ``life`` promises.
    """

    side = "prefill"

    def __init__(self, host: SenderHost, record: Room, *, may_raise: bool = True) -> None:
        super().__init__(host.rooms, record, host.events, may_raise=may_raise)
        self.life = Life(record)
        self._host = host
        self._lock = threading.Lock()
        self._destinations: list[Destination] = []
        self._gate = ChunkGate(host.waiter, self._leave, self.give_up)
        self._unfinished = 0
        self._in_flight: Counter[int] = Counter()  # chunks by decode rank, none without
        self._sent = Sent()
        self._supply = Supply(record, host.pools)
        self._moments = Moments()

    @property
    def decode_prefix_len(self) -> int | None:
        """Tokens at the request's start that decode holds already; None until WAITING_FOR_INPUT."""
        return self._destinations[0].wanted.decode_prefix_len if self.life.complete else None

    @raises_or_fails
    def init(self, num_pages: int, aux_index: int | None = None, *, start_page: int = 0) -> None:
        """Announce how many pages ``send`` will bring in total, and the aux slot, if there is aux.

        A rank whose row is not the one that decode gets may leave the slot out. ``start_page`` pages at the
        request's start neither count nor come, since decode holds them: at most ``decode_prefix_len`` in
        whole pages, else the room fails on both sides.

        Raises:
            RoomError: called twice, a negative count, or an aux slot that does not fit the pools.
        """
        self._require_here()
        announced = self._supply.announcement(num_pages, aux_index, start_page)
        with self._lock:
            self._supply.announce(*announced)
            failure = self._supply.disagreement(self._destinations)
        if failure is not None:
            self.give_up(failure)

    @raises_or_fails
    def send(
        self,
        pages: npt.ArrayLike,
        state_indices: Sequence[npt.ArrayLike] | None = None,
        *,
        ready: object = None,
    ) -> None:
        """Send the next pages of this request, in its logical order; a chunked prefill calls it often.

        The call that completes ``num_pages`` is the last one and carries aux and state; the aux slot
        must hold this room's values by then. It may come before decode has named its pages. Does
        nothing in a room that has failed.

        ``ready``: nothing of these pages, nor state and aux, is read before it: an object with ``is_set()``
        (as threading.Event) or ``query()`` (as torch.cuda.Event), or a callable that returns by then. It is
        waited for in another thread, and delays no other room; the room may end meanwhile. What it raises
        fails the room, as does an aux slot that holds another room's values once it is ready.

        Raises:
            RoomError: before ``init``, after the last page, more pages than announced, or no such ``ready``.
            PlanError: pages outside the pool, or state index lists that don't match the components.
            KVTransferError: code AUX, the last chunk, but the aux slot holds another room's values.
        """
        self._require_here()
        if self.record.status is KVPoll.FAILED:
            return
        readiness = SourceReadiness.of(self.room, ready)
        chunk = self._supply.chunk(pages, state_indices)
        if readiness is None:
            self._supply.check_aux(chunk)
        with self._lock:
            self._supply.taken(chunk)
            self._unfinished += 1
        self._gate.put(chunk, readiness)

    def poll(self) -> KVPoll:
        """Return the state of the room. With the inline model this also advances the transfer."""
        self._require_here()
        self._sent.advance(wanted=self.record.status is not KVPoll.FAILED)
        return self.record.status

    def wait(self, deadline: Deadline) -> KVPoll:
        self._require_here()
        require_deadline("the deadline of wait()", deadline)
        self._sent.finish(deadline, self.record.deadline)
        return super().wait(deadline)

    def release_safe(self) -> bool:
        self.poll()
        return self.drained

    def awaited(self) -> Awaited:
        with self._lock:
            destinations, supply = self._destinations, self._supply
            in_flight, announced, sent = dict(self._in_flight), supply.announced, supply.sent
        asked = {d.link.rank: d.link.identity for d in destinations}
        if not self.life.complete:
            asking = destinations[0].link.asking if destinations else ()
            return awaited.of_decode(asked, asking, *self._host.company(self))
        if (unready := self._gate.unready) is not None:
            return awaited.of_source(len(unready.pages), unready.start)
        if not supply.complete:
            return awaited.of_prefill(announced, sent, list(asked.values()))
        return awaited.of_transfers(
            {asked[rank]: count for rank, count in in_flight.items()}, len(self._sent)
        )

    def unsafe_because(self) -> str:
        if not self.record.status.terminal:
            return NOT_ENDED
        if self.drained:
            return ""
        peers = {d.link.identity for d in self._destinations}
        return "; ".join(sorted(f"{peer}: {self._host.unproven(peer)}" for peer in peers))

    def metric(self) -> RequestMetrics:
        return self._sent.metric(self.record, self._moments, self._supply.sent)

    # --- called by the manager -------------------------------------------------------------

    @property
    def drained(self) -> bool:
        """Whether the room ended and nothing of it is in flight; unlike ``release_safe`` from any thread."""
        return self.record.status.terminal and not self._in_flight

    @property
    def _silent(self) -> bool:
        with self._lock:
            return not self._in_flight

    def accept(self, destination: Destination) -> bool:
        """Take a destination; return False if the room is past BOOTSTRAPPING (a stale message).

        The room waits for all the decode ranks that ask this prefill rank.
        """
        link, wanted, life = destination.link, destination.wanted, self.life
        with self._lock:
            twice = link.rank in life.promised
            if self.record.status is not KVPoll.BOOTSTRAPPING or life.complete or twice:
                return False
            # A new list, so that who reads it without the lock sees the old or the new one whole.
            self._destinations = [*self._destinations, destination]
            life.promised = {**life.promised, link.rank: (link.route, wanted.generation, link.identity)}
            failure = self._supply.disagreement(self._destinations)
            if link.lost:
                failure = link.loss(self.room, "it was lost before prefill opened the room")
            life.complete = failure is None and len(self._destinations) >= link.served
        self._host.rooms.tighten(self.record, destination.deadline)
        destination.report(self.record.generation, self.events)
        if failure is not None:
            self.give_up(failure)
        elif life.complete:
            self._moments.met = time.monotonic()
            self._host.rooms.move(self.record, KVPoll.WAITING_FOR_INPUT)
            self._gate.open()
        return True

    def conclude(self) -> None:
        """End the room as SUCCESS and tell who waits for that."""
        with self._lock:
            destinations = list(self._destinations)
        # Aux is read before SUCCESS shows: from then on the caller may reuse the slot.
        answers, slot = self._host.answers, self._supply.aux_index
        messages = [(d, m) for d in destinations for m in answers.concluded(d, slot)]
        self._end(KVPoll.SUCCESS, tell=partial(self._tell_all, messages))
        self._host.ended(self)

    def chunks_to(self, destination: Destination) -> list[TransferKVChunk]:
        """Return what was sent to a destination, in order."""
        return self._sent.chunks_to(destination.link.identity)

    def give_up(self, failure: KVTransferError) -> bool:
        if not self._end(KVPoll.FAILED, failure):
            return False
        self._gate.end()
        with self._lock:
            destinations, drained = list(self._destinations), not self._in_flight
        for d in destinations:
            generation = d.wanted.generation
            told = self._host.answers.failed(self.room, generation, failure, drained=drained)
            self._host.tell(d, told)
        self._host.ended(self)
        return True

    def uses(self, link: PeerLink) -> bool:
        """Whether this room is promised to a peer."""
        return any(d.link is link for d in self._destinations)

    def _forget(self) -> None:
        self.poll()
        self._host.forget(self)

    # --- inside ----------------------------------------------------------------------------

    def _leave(self, chunk: TransferKVChunk, *, waited: bool, from_send: bool) -> None:
        """Send a chunk whose turn it is, and which may have ``waited`` for its source."""
        if not waited or self.attempt(partial(self._supply.check_aux, chunk)):
            self._dispatch(chunk, from_send=from_send)

    def _dispatch(self, chunk: TransferKVChunk, *, from_send: bool) -> None:
        if not self._moments.first:
            self._moments.first = time.monotonic()
            self._host.rooms.move(self.record, KVPoll.TRANSFERRING)
        deadline = self.record.deadline
        with self._lock:
            if self.record.status.terminal:
                return  # who ended it has told, or tells, that nothing more comes
            destinations = [d for d in self._destinations if not d.link.dummy]
            self._unfinished += len(destinations) - 1
            self._in_flight.update(d.link.rank for d in destinations)
        if not destinations:
            self._settle()
        for d in destinations:
            plan = partial(d.link.plan, chunk, d.wanted)
            on_end, drained = partial(self._on_end, d.link), partial(self._on_drained, d.link.rank)
            delivery = Delivery(
                chunk, d.link.identity, plan, deadline, self._alive, on_end, drained, self.events
            )
            self._sent.add(delivery)
            self._sent.drive(self._host.dispatch(d.link, delivery, from_send=from_send))

    def _alive(self) -> bool:
        return not self.record.status.terminal

    def _on_end(self, link: PeerLink, error: KVTransferError | None) -> None:
        if error is not None:
            if error.code is FailureCode.DEADLINE and self.record.overdue:
                self.miss()
            self.give_up(error)
            if error.code is FailureCode.PEER_LOST:
                self._host.suspect(link, error)

    def _on_drained(self, rank: int) -> None:
        with self._lock:
            self._in_flight[rank] -= 1
            if not self._in_flight[rank]:
                del self._in_flight[rank]
            self._unfinished -= 1
        self._settle()

    def _settle(self) -> None:
        """End the room if nothing of it is left to do."""
        with self._lock:
            drained = not self._in_flight
            complete = self._unfinished == 0 and self._supply.complete
            destinations = list(self._destinations)
        if self.record.status is KVPoll.FAILED:
            if drained:
                for destination in destinations:
                    self._host.tell(destination, Released(self.room, destination.wanted.generation))
            self._look_for_silence()
        elif complete and not self._host.examine(self, destinations):
            self.attempt(self.conclude)

    def _tell_all(self, messages: list[tuple[Destination, Message]]) -> None:
        for destination, message in messages:
            self._host.tell(destination, message)
