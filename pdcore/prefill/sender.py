"""KVSender: one request on the prefill side."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy.typing as npt

from pdcore.arguments import count, require_deadline
from pdcore.errors import KVTransferError
from pdcore.events.metrics import RequestMetrics
from pdcore.memory.pools import Pools
from pdcore.model import Deadline, KVPoll, PeerIdentity
from pdcore.plan import index_array
from pdcore.prefill.readiness import SourceReadiness
from pdcore.prefill.ready_waiter import Waiter
from pdcore.prefill.sent import Sent
from pdcore.protocol.chunk import TransferKVChunk
from pdcore.protocol.send.send_room import SendRoom
from pdcore.protocol.stimuli import AnnouncePages, SourceReady, Supply
from pdcore.rooms.handle import NOT_ENDED, Feeds, RoomHandle, raises_or_fails

__all__ = ["KVSender", "SenderHost"]


class SenderHost(Feeds, Protocol):
    """What a sender needs of its manager."""

    pools: Pools
    waiter: Waiter

    def unproven(self, target: PeerIdentity) -> str:
        """Why writes to a decode process have not ended, of rooms that have."""


class KVSender(RoomHandle):
    """Sends the KV cache of one room. Made by ``PrefillManager.sender``; one scheduler thread calls it."""

    side = "prefill"
    record: SendRoom

    def __init__(self, host: SenderHost, record: SendRoom, *, may_raise: bool = True) -> None:
        super().__init__(host, record, may_raise=may_raise)
        self.sent = Sent()
        self._host = host
        self._ready: deque[SourceReadiness] = deque()
        self._submitter = 0

    @property
    def decode_prefix_len(self) -> int | None:
        """Tokens at the request's start that decode holds already; None until WAITING_FOR_INPUT."""
        record = self.record
        return record.destinations[0].wanted.decode_prefix_len if record.complete else None

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
        room, record = self.room, self.record
        pages, start = count(room, "num_pages", num_pages), count(room, "start_page", start_page)
        record.require_unannounced(pages)
        slot = self._host.pools.aux_slot(room, aux_index)
        self._feed(AnnouncePages(record.generation, pages, slot, start))

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
        record, pools = self.record, self._host.pools
        if record.status is KVPoll.FAILED:
            return
        readiness = SourceReadiness.of(self.room, ready)
        indices = index_array(pages, "KV pages")
        is_last = record.would_complete(len(indices))
        pools.check_pages(self.room, indices)
        lists = pools.state_lists(self.room, state_indices, due=is_last)
        supply = Supply(record.generation, indices, lists, readiness is not None)
        if readiness is not None:
            self._ready.append(readiness)
        else:
            self._check_aux(is_last=is_last)
        self._submitter = threading.get_ident()
        try:
            self._feed(supply)
        finally:
            self._submitter = 0

    def poll(self) -> KVPoll:
        """Return the state of the room. With the inline model this also advances the transfer."""
        self._require_here()
        self.sent.advance(wanted=self.record.status is not KVPoll.FAILED)
        return self.record.status

    def wait(self, deadline: Deadline) -> KVPoll:
        self._require_here()
        require_deadline("the deadline of wait()", deadline)
        self.sent.finish(deadline, Deadline(self.record.deadline))
        return super().wait(deadline)

    def release_safe(self) -> bool:
        self.poll()
        return self.record.silent

    def unsafe_because(self) -> str:
        record = self.record
        if not record.over:
            return NOT_ENDED
        if record.silent:
            return ""
        peers = {d.peer.identity for d in record.destinations}
        return "; ".join(sorted(f"{peer}: {self._host.unproven(peer)}" for peer in peers))

    def metric(self) -> RequestMetrics:
        return self.sent.metric(self.record)

    def clear(self) -> None:
        if not self.stillborn:
            self.poll()
        super().clear()

    # --- called by who carries actions out ---------------------------------------------------

    @property
    def submits_here(self) -> bool:
        """Whether this thread is in the ``send`` of this room."""
        return self._submitter == threading.get_ident()

    def watch(self, chunk: TransferKVChunk) -> None:
        """Tell the machine once the source of a chunk may be read: now, if it may."""
        readiness = self._ready.popleft()
        try:
            if readiness.asks is not None and readiness.asks():
                self._source_ready(chunk)
                return
        except Exception as error:  # it is the caller's
            self._source_ready(chunk, readiness.failure(error))
            return
        then: Callable[[Exception | None], None] = partial(self._on_ready, chunk, readiness)
        self._host.waiter.watch(readiness, lambda: not self.record.over, then)

    # --- inside ------------------------------------------------------------------------------

    def _on_ready(self, chunk: TransferKVChunk, readiness: SourceReadiness, error: Exception | None) -> None:
        if not self.record.over:
            self._source_ready(chunk, None if error is None else readiness.failure(error))

    def _source_ready(self, chunk: TransferKVChunk, failure: KVTransferError | None = None) -> None:
        if failure is None:
            try:
                self._check_aux(is_last=chunk.is_last)
            except KVTransferError as error:
                failure = error
        self._feed(SourceReady(self.record.generation, failure))

    def _check_aux(self, *, is_last: bool) -> None:
        """Check that the aux slot holds this room's values, which go with the last chunk.

        Raises:
            KVTransferError: code AUX, it holds another room's.
        """
        aux, slot = self._host.pools.aux, self.record.aux_index
        if is_last and aux is not None and slot is not None:
            aux.check_room(slot, self.room)
