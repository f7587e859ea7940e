"""KVReceiver: one request on the decode side."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

import numpy.typing as npt

from pdcore.decode.source import PrefillSource
from pdcore.errors import FailureCode, KVTransferError, RoomError
from pdcore.handle import RoomHandle
from pdcore.metrics import RequestMetrics
from pdcore.model import Generation, KVPoll, RoomId
from pdcore.plan import index_array
from pdcore.pools import Pools
from pdcore.status import Room, RoomTable
from pdcore.wire import Abort, Failure, RequestMetadata, RoomStatus

__all__ = ["KVReceiver", "ReceiverHost"]


class ReceiverHost(Protocol):
    """What a receiver needs of its manager."""

    pools: Pools
    rooms: RoomTable

    def source(self, bootstrap: str, prefill_dp_rank: int) -> PrefillSource:
        """Return the pairing with a prefill rank, begun if need be."""

    def request(self, source: PrefillSource, wanted: RequestMetadata) -> None:
        """Post a request to a paired prefill rank."""

    def abandon(self, source: PrefillSource, abort: Abort) -> None:
        """Tell prefill that a request was given up."""

    def forget(self, receiver: KVReceiver) -> None:
        """Free the id of a room that was cleared."""


class KVReceiver(RoomHandle):
    """Receives the KV cache of one room. Made by ``DecodeManager.receiver``; one thread calls it.

    The lock guards ``_source``, ``_held``, ``_posted`` and ``_drained``.
    """

    side = "decode"

    def __init__(self, host: ReceiverHost, record: Room, bootstrap: str, required_responses: int) -> None:
        super().__init__(host.rooms, record)
        self._host = host
        self._bootstrap = bootstrap
        self._required = required_responses
        self._lock = threading.Lock()
        self._source: PrefillSource | None = None
        self._held: RequestMetadata | None = None
        self._responded: set[int] = set()
        self._posted = False
        self._drained = True
        self._num_pages = -1
        self._aux_index: int | None = None
        self._paired_at = 0.0
        self._posted_at = 0.0

    def init(self, prefill_dp_rank: int = 0) -> None:
        """Choose the prefill DP rank. Pairs with it if that was not done before; doesn't wait.

        Raises:
            RoomError: called twice.
        """
        if self._source is not None:
            raise RoomError(
                f"init() of room {self.room} was called twice", f"prefill {self._bootstrap}", "call it once"
            )
        source = self._host.source(self._bootstrap, prefill_dp_rank)
        with self._lock:
            self._source = source
        source.subscribe(self)

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

        Raises:
            RoomError: before ``init``, called twice, a bad aux slot, or a prefix (not in this version).
            PlanError: pages outside the pool, or index lists that don't match the components.
        """
        if self.record.status is KVPoll.FAILED:
            return
        if self._source is None or self._num_pages >= 0 or decode_prefix_len != 0:
            raise RoomError(
                f"send_metadata() of room {self.room} was refused",
                f"init() called: {self._source is not None}, metadata sent before: {self._num_pages >= 0}, "
                f"decode_prefix_len={decode_prefix_len}",
                "call init(), then send_metadata() once, with decode_prefix_len=0 (all this version has)",
            )
        indices = index_array(pages, "KV pages")
        pools = self._host.pools
        pools.check_pages(self.room, indices)
        pools.check_aux_slot(self.room, aux_index)
        lists = pools.state_lists(self.room, state_indices, due=True)
        if pools.aux is not None and aux_index is not None:
            pools.aux.empty(aux_index)
        self._num_pages, self._aux_index = len(indices), aux_index
        record = self.record
        wanted = RequestMetadata(
            record.room, record.generation, indices, aux_index, lists, 0, record.deadline.remaining()
        )
        with self._lock:
            self._held = wanted
        self._post_when_paired()

    def release_safe(self) -> bool:
        return self.record.status.terminal and self._drained

    def metric(self) -> RequestMetrics:
        record = self.record
        end = record.ended_at or time.monotonic()
        paired, posted = self._paired_at or end, self._posted_at or end
        pages = max(0, self._num_pages)
        return RequestMetrics(
            room=self.room,
            status=record.status,
            pages=pages,
            nbytes=pages * self._host.pools.layout.page_bytes,
            chunks=0,
            entries=0,
            bootstrap=paired - record.opened_at,
            waiting=max(0.0, posted - paired),
            transfer=end - posted,
            plan=0.0,
            total=end - record.opened_at,
        )

    # --- called by the manager and the source ------------------------------------------------

    def paired(self) -> None:
        """The source is paired: what was held may go."""
        self._paired_at = self._paired_at or time.monotonic()
        self._host.rooms.move(self.record, KVPoll.WAITING_FOR_INPUT)
        self._post_when_paired()

    def give_up(self, failure: KVTransferError) -> bool:
        if not self.fail(failure):
            return False
        source = self._source
        if self._posted and source is not None:
            self._host.abandon(source, Abort(self.room, self.record.generation, Failure.of(failure)))
        return True

    def fail(self, failure: KVTransferError) -> bool:
        """End the room as FAILED without a word to prefill; False if it had ended before."""
        if not self._host.rooms.fail(self.record, failure):
            return False
        with self._lock:
            self._held = None
        return True

    def on_status(self, message: RoomStatus) -> None:
        """Take prefill's word that the room ended."""
        if message.status is KVPoll.FAILED:
            if message.drained:
                self.drained()
            self.fail(message.failure.error() if message.failure else self._unexplained())
            return
        self._responded.add(message.rank)
        if message.status is not KVPoll.SUCCESS or len(self._responded) < self._required:
            return
        self.drained()
        aux = self._host.pools.aux
        try:
            if aux is not None and self._aux_index is not None:
                aux.check_room(self._aux_index, self.room)
        except KVTransferError as error:
            self.fail(error)
        else:
            self._host.rooms.move(self.record, KVPoll.SUCCESS)

    def drained(self) -> None:
        """No byte of this room can land any more."""
        with self._lock:
            self._drained = True

    @property
    def aux_slot(self) -> int | None:
        """The slot that an aux row over TCP goes to, while the room is open."""
        return None if self.record.status.terminal else self._aux_index

    def is_for(self, source: PrefillSource, room: RoomId, generation: Generation) -> bool:
        """Whether a message of this source belongs to this room's life."""
        return self.room == room and self.record.generation == generation and self._source is source

    def uses(self, source: PrefillSource) -> bool:
        """Whether this room waits for a prefill rank."""
        return self._source is source

    # --- inside ----------------------------------------------------------------------------

    def _forget(self) -> None:
        self._host.forget(self)

    def _unexplained(self) -> KVTransferError:
        return KVTransferError(
            FailureCode.ENGINE, f"prefill failed room {self.room}", "it gave no reason", "look at its log"
        )

    def _post_when_paired(self) -> None:
        with self._lock:
            wanted, source = self._held, self._source
            if wanted is None or source is None or not source.ready or self.record.status.terminal:
                return
            self._held = None
            self._posted, self._drained = True, False
            self._posted_at = time.monotonic()
        self._host.rooms.move(self.record, KVPoll.TRANSFERRING)
        self._host.request(source, wanted)
