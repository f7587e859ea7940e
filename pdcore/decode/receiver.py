"""KVReceiver: one request on the decode side."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial

import numpy.typing as npt

from pdcore.arguments import count
from pdcore.bootstrap import ReplicaQuery
from pdcore.decode.dialogue import Dialogue
from pdcore.decode.host import ReceiverHost
from pdcore.decode.placement import Placement, declined, refused, unexplained
from pdcore.decode.source import PrefillSource
from pdcore.errors import KVTransferError, RoomError
from pdcore.events import MetadataSent
from pdcore.events.metrics import Moments, RequestMetrics
from pdcore.model import Generation, KVPoll, PeerIdentity, RoomId
from pdcore.pairing.topology import DPChoice
from pdcore.rooms.claims import Claim
from pdcore.rooms.handle import NOT_ENDED, RoomHandle, raises_or_fails
from pdcore.rooms.status import Awaited, Room
from pdcore.wire import RequestMetadata, RoomStatus

__all__ = ["KVReceiver"]


class KVReceiver(RoomHandle):
    """Receives the KV cache of one room. Made by ``DecodeManager.receiver``; one thread calls it.

    The lock guards ``_held``, ``_writers``, and what ``_dialogue`` leaves to it.
    """

    side = "decode"

    def __init__(self, host: ReceiverHost, record: Room, bootstrap: str, *, may_raise: bool = True) -> None:
        super().__init__(host.rooms, record, host.events, may_raise=may_raise)
        self._host = host
        self._bootstrap = bootstrap
        self._lock = threading.Lock()
        self._dialogue = Dialogue(host, record, bootstrap)
        self._held: RequestMetadata | None = None
        self._responded: set[PeerIdentity] = set()
        self._writers: set[PeerIdentity] = set()
        self._placement: Placement | None = None
        self._claim: Claim | None = None
        self._moments = Moments()

    @raises_or_fails
    def init(self, prefill_dp_rank: int | DPChoice = DPChoice.BY_ROOM) -> None:
        """Choose the prefill DP rank. Pairs with it if that was not done before; doesn't wait.

        By default it is the one that a router gives the room (:func:`~pdcore.pairing.topology.dp_rank_of`).

        Raises:
            RoomError: called twice, or that can be no DP rank.
        """
        self._require_here()
        choice = prefill_dp_rank
        if not isinstance(choice, DPChoice):
            choice = count(self.room, "prefill_dp_rank", choice)
        if self._dialogue.group is not None:
            raise RoomError(
                f"init() of room {self.room} was called twice", f"prefill {self._bootstrap}", "call it once"
            )
        group = self._host.group(self._bootstrap, ReplicaQuery(choice, self.room))
        with self._lock:
            self._dialogue.group = group
        group.subscribe(self)
        failure = self.failure()
        if failure is not None and choice is not DPChoice.BY_ROOM:
            self._dialogue.part(failure)  # another one may have been told, before this was known

    @raises_or_fails
    def send_metadata(
        self,
        pages: npt.ArrayLike,
        aux_index: int | None = None,
        state_indices: Sequence[npt.ArrayLike] | None = None,
        decode_prefix_len: int = 0,
    ) -> None:
        """Name the pages that the KV cache shall land in, in the request's logical order.

        Also the aux slot, and one index list per state component. Goes out once prefill is paired.
        From here on the pages, slot and state items belong to the transfer until ``release_safe``.
        Does nothing in a room that has failed.

        Args:
            decode_prefix_len: tokens at the request's start that decode holds already. Whole pages of
                them are not sent, and ``pages`` names only those after them; aux and state come anyway.

        Raises:
            RoomError: before ``init``, called twice, a bad aux slot, a negative prefix, a prefix where
                ``transfer.prefix_reuse`` is off, or what another room has and may still be written to.
            PlanError: indices outside their pool or named twice, or lists that don't match the components.
        """
        self._require_here()
        if self.record.status is KVPoll.FAILED:
            return
        record, pools = self.record, self._host.pools
        error = refused(
            record,
            initialised=self._dialogue.group is not None,
            placed=self._placement is not None,
            decode_prefix_len=decode_prefix_len,
            prefix_reuse=self._host.config.transfer.prefix_reuse,
        )
        if error is not None:
            raise error
        placement = Placement.checked(record, pools, pages, aux_index, state_indices, decode_prefix_len)
        slot = placement.aux_index
        self._claim = self._host.claims.take(self, placement.pages, slot, placement.state_indices)
        if pools.aux is not None and slot is not None:
            pools.aux.empty(slot)
        self._placement = placement
        trace = self.events.traceparent(record.room, record.generation) if self.events.on else None
        wanted = placement.request(record, trace)
        with self._lock:
            self._held = wanted
        self._post_when_paired()

    def decline(self, reason: str = "") -> None:
        """Have nothing sent, since decode has no use for it: it holds all, or the request is over.

        May come at any time, also before ``init``: then the replica that a router gives the room is told.
        Unless it has ended, the room ends as FAILED on both sides with code DECLINED, which is no error, and
        the reason. Prefill may reuse its pages at once, if none was under way.
        """
        self._require_here()
        self.give_up(declined(self.room, reason))

    def awaited(self) -> Awaited:
        return self._dialogue.awaited(placed=self._placement is not None, answered=self._responded)

    def release_safe(self) -> bool:
        self._require_here()
        if not self.record.status.terminal:
            return False
        with self._lock:
            safe = not self._writers
        if safe:
            self._host.claims.free(self._claim)
        return safe

    def unsafe_because(self) -> str:
        if not self.record.status.terminal:
            return NOT_ENDED
        with self._lock:
            writers = self._writers
        return "; ".join(sorted(f"{writer}: {self._host.unproven(writer)}" for writer in writers))

    def metric(self) -> RequestMetrics:
        record, pages = self.record, len(self._placement.pages) if self._placement else 0
        return RequestMetrics.between(
            self.room,
            record.status,
            record.opened_at,
            self._moments,
            record.ended_at,
            pages=pages,
            nbytes=pages * self._host.pools.layout.page_bytes,
        )

    # --- called by the manager and the source ------------------------------------------------

    def paired(self) -> None:
        """The source is paired: what was held may go."""
        self._moments.met = self._moments.met or time.monotonic()
        self._host.rooms.move(self.record, KVPoll.WAITING_FOR_INPUT)
        self._post_when_paired()

    def give_up(self, failure: KVTransferError, told: PrefillSource | None = None) -> bool:
        if not self._fail(failure):
            return False
        with self._lock:
            asking = self._dialogue.asking
        if not asking:
            self._dialogue.part(failure, told)
        elif self._dialogue.posted:
            self._dialogue.abandon(failure, [m for m in self._dialogue.members if m is not told])
        return True

    def unpaired(self, failure: KVTransferError) -> bool:
        """The pairing failed."""
        return self.give_up(failure)

    def look_out(self) -> None:
        """Now and then, while the room is open: let prefill know of it, and ask what it waits for."""
        self._dialogue.announce()
        self._dialogue.inquire(self._responded)

    def met_again(self, source: PrefillSource) -> None:
        """A prefill rank is connected again: what was said last, by whomever, may be lost."""
        if not self.record.status.terminal:
            self._dialogue.met_again(source, self._responded)

    def on_standing(self, source: PrefillSource, waits_for: str) -> None:
        """Take the word of a prefill rank what it waits for."""
        self._dialogue.standing[source.identity] = waits_for

    def remind(self) -> None:
        """Ask again who may still write to this failed room."""
        with self._lock:
            writers = self._writers
        self._dialogue.remind(writers)

    def on_status(self, source: PrefillSource, message: RoomStatus) -> None:
        """Take the word of a prefill rank that the room ended there."""
        if message.drained:
            self.drained(source)
        if message.status is KVPoll.FAILED:
            # The other ranks may be writing yet: they are told to stop.
            self.give_up(message.failure.error() if message.failure else unexplained(self.room), source)
            return
        if message.status is not KVPoll.SUCCESS or self._dialogue.group is None:
            return
        self._responded.add(source.identity)
        if not self._responded.issuperset(sender.identity for sender in self._dialogue.group.senders):
            return
        aux = self._host.pools.aux
        try:
            if aux is not None and self._aux_index is not None:
                aux.check_room(self._aux_index, self.room)
        except KVTransferError as error:
            self._fail(error)
        else:
            self._end(KVPoll.SUCCESS)

    def drained(self, source: PrefillSource | None = None) -> None:
        """No byte of this room can come from this prefill process any more; None: from any."""
        with self._lock:
            self._writers = self._writers - {source.identity} if source else set()
        self.release_safe()
        self._look_for_silence()

    @property
    def _silent(self) -> bool:
        with self._lock:
            return not self._writers

    @property
    def aux_slot(self) -> int | None:
        """The slot that an aux row over TCP goes to, while the room is open."""
        return None if self.record.status.terminal else self._aux_index

    @property
    def _aux_index(self) -> int | None:
        return self._placement.aux_index if self._placement else None

    def is_for(self, source: PrefillSource, room: RoomId, generation: Generation) -> bool:
        """Whether a message of this source belongs to this room's life."""
        return self.room == room and self.record.generation == generation and self.uses(source)

    def uses(self, source: PrefillSource) -> bool:
        """Whether this room waits for a prefill process, which may have paired anew since."""
        return any(member.identity == source.identity for member in self._dialogue.members)

    def may_be_written_by(self, source: PrefillSource) -> bool:
        """Whether bytes of this room may come from a prefill process."""
        with self._lock:
            return source.identity in self._writers

    # --- inside ----------------------------------------------------------------------------

    def _fail(self, failure: KVTransferError) -> bool:
        """End the room as FAILED without a word to prefill; False if it had ended before."""
        if not self._end(KVPoll.FAILED, failure):
            return False
        with self._lock:
            self._held = None
        return True

    def _forget(self) -> None:
        self._host.forget(self)

    def _post_when_paired(self) -> None:
        held, group = self._held, self._dialogue.group
        if held is None or group is None or not group.ready:
            return
        if (obstacle := self._dialogue.obstacle(held)) is not None:
            self.give_up(obstacle)
        with self._lock:
            wanted, group = self._held, self._dialogue.group
            if wanted is None or group is None or not group.ready or self.record.status.terminal:
                return
            self._held, self._dialogue.asking = None, True
            self._writers = {sender.identity for sender in group.senders}
            self._moments.first = time.monotonic()
        self._host.rooms.move(self.record, KVPoll.TRANSFERRING)
        if self.events.on:
            self.events.emit(
                MetadataSent(self.events.node, self.room, self.record.generation, len(wanted.pages))
            )
        self.attempt(partial(self._dialogue.ask, wanted))
