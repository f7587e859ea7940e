"""SGLang's senders and receivers over pdcore's: one of them per request and rank.

Nothing that goes wrong here may reach SGLang's scheduler, which would end with it: it ends the room. The one
exception that leaves is SGLang's own, from ``failure_exception``, where the scheduler asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import numpy.typing as npt
from sglang.srt.disaggregation.base import conn as base
from sglang.srt.disaggregation.common.conn import KVTransferError as TransferFailed

from pdcore import DPChoice, FailureCode, KVPoll, KVTransferError, PDCoreError, RoomId
from pdcore.errors import one_line
from pdcore.rooms.containment import room_fails
from pdcore.rooms.handle import RoomHandle

if TYPE_CHECKING:
    from pdcore_sglang.manager import PdcoreManager

__all__ = ["PdcoreReceiver", "PdcoreSender"]

Indices = Sequence[npt.ArrayLike | None]


class _End:
    """What sender and receiver have in common: a room that SGLang polls, fails and clears."""

    bootstrap_room: int
    _room: RoomHandle
    _cleared = False

    def poll(self) -> Any:  # SGLang's KVPoll is a namespace of integers
        """Return the state of the room, in SGLang's numbers, which are pdcore's."""
        state = KVPoll.FAILED
        with room_fails(self._room):
            state = self._state()
        return int(state)

    def _state(self) -> KVPoll:
        return self._room.poll()

    def fail(self, error: PDCoreError) -> None:
        """End the room with an error."""
        with room_fails(self._room):
            self._room.fail(error)

    def failure_exception(self) -> NoReturn:
        """Raise why the room failed; where another rank of this worker failed it, end it here as well."""
        failure = self._room.failure()
        if failure is None:
            with room_fails(self._room):
                self._room.abort()
        reason = one_line(failure) if failure else "another rank of this worker failed it: see its log"
        raise TransferFailed(self.bootstrap_room, reason, failure is None)

    def clear(self) -> None:
        """Forget the room."""
        if not self._cleared:
            self._cleared = True
            with room_fails(self._room):
                self._room.clear()


class PdcoreSender(_End, base.BaseKVSender):
    """The prefill side of a request."""

    supports_host_tensor_indices = False  # pdcore reads the indices when they are handed in
    _early_send_wait_event: Any = None

    def __init__(
        self,
        mgr: PdcoreManager,
        bootstrap_addr: str,
        bootstrap_room: int,
        req_has_disagg_prefill_dp_rank: bool = False,
    ) -> None:
        assert mgr.prefill is not None
        self.kv_mgr = mgr
        self.bootstrap_room = bootstrap_room
        self._room = self._handle = mgr.prefill.sender(RoomId(bootstrap_room), may_raise=False)
        self._left = 0
        self._aux_index: int | None = None
        place = mgr.prefill.topology
        if place.dp_size > 1 and place.unique_rank == 0 and not self._handle.stillborn:
            with room_fails(self._room):
                mgr.prefill.register_dp_rank(RoomId(bootstrap_room))

    def poll_pp_consensus(self) -> Any:
        """Return the state of the room."""
        return self.poll()

    def pop_decode_prefix_len(self) -> int:
        """Return how many tokens decode holds already; they are neither announced nor sent."""
        return self._handle.decode_prefix_len or 0

    def init(self, num_kv_indices: int, aux_index: int | None = None) -> None:
        """Announce how many pages come behind those that decode holds."""
        with room_fails(self._room):
            self._left, self._aux_index = num_kv_indices, aux_index
            held = self.pop_decode_prefix_len() // self.kv_mgr.kv_args.page_size
            self._handle.init(num_kv_indices, aux_index, start_page=held)

    def should_send_kv_chunk(self, num_pages: int, last_chunk: bool) -> bool:
        """Whether a chunk is to be sent: the last one carries metadata and state, also without a page."""
        return num_pages > 0 or last_chunk

    def send(
        self,
        kv_indices: npt.NDArray[np.int32],
        state_indices: Indices | None = None,
        num_kv_tokens: int | None = None,
    ) -> None:
        """Send the next pages; they are read when the event that SGLang left, if any, has come."""
        with room_fails(self._room):
            self._left -= len(kv_indices)
            if self._left <= 0 and self._aux_index is not None and self.kv_mgr.pools.aux is not None:
                self.kv_mgr.pools.aux.give(self._aux_index, RoomId(self.bootstrap_room))
            ready, self._early_send_wait_event = self._early_send_wait_event, None
            self._handle.send(kv_indices, _lists(state_indices), ready=ready)

    def get_transfer_metric(self) -> base.KVTransferMetric:
        """Return SGLang's figures of the transfer: seconds from the first send, and until decode had room."""
        figures = self._handle.metric()
        return base.KVTransferMetric(figures.transfer, figures.bootstrap, figures.nbytes)

    def failure_exception(self) -> NoReturn:
        """Raise why the room failed. SGLang clears no sender that failed, so its room is forgotten here."""
        try:
            super().failure_exception()
        finally:
            self.clear()

    def abort(self) -> None:
        """Give the request up, and forget its room: SGLang need not ask for it again."""
        with room_fails(self._room):
            self._handle.abort()
        self.clear()


class PdcoreReceiver(_End, base.BaseKVReceiver):
    """The decode side of a request."""

    def __init__(self, mgr: PdcoreManager, bootstrap_addr: str, bootstrap_room: int | None = None) -> None:
        assert mgr.decode is not None
        self.kv_mgr = mgr
        self.bootstrap_addr = bootstrap_addr
        self.bootstrap_room = -1 if bootstrap_room is None else bootstrap_room
        self.bootstrap_infos = ()  # SGLang counts the acknowledgements due by it: is_abort_release_safe knows
        self._decode = mgr.decode
        room = RoomId(self.bootstrap_room)
        self._room = self._handle = mgr.decode.receiver(bootstrap_addr, room, may_raise=False)
        self._asking_since: float | None = None
        self._patience = mgr.config.timeouts.bootstrap
        self._placed = False
        if not self._handle.stillborn:
            mgr.receivers[self.bootstrap_room] = self

    def init(self, prefill_dp_rank: int) -> None:
        """Let the room begin as soon as its prefill group is known."""
        self._asking_since = time.monotonic()
        self.poll()

    def send_metadata(
        self,
        kv_indices: npt.NDArray[np.int32],
        aux_index: int | None = None,
        state_indices: Indices | None = None,
        decode_prefix_len: int | None = None,
        destination: base.KVTransferDestination = base.KVTransferDestination.DEVICE,
    ) -> None:
        """Name the pages, the metadata slot and the state that the request is to land in."""
        with room_fails(self._room):
            self._placed = True
            self._handle.send_metadata(kv_indices, aux_index, _lists(state_indices), decode_prefix_len or 0)

    def _state(self) -> KVPoll:
        if self._asking_since is not None:
            self._begin(self._asking_since)
        state = self._handle.poll()
        if state is KVPoll.SUCCESS:
            self._handle.release_safe()  # the pages are the request's alone from here on
        return state

    def _begin(self, since: float) -> None:
        """Choose the DP rank once the group is known. Give up where asking again is of no use, or the service
        was not reached for as long as pdcore itself would try."""
        facts = self._decode.prefill_group(self.bootstrap_addr)
        if facts is None or self._handle.poll().terminal:
            return
        if not isinstance(facts, KVTransferError):
            self._asking_since = None
            self._handle.init(DPChoice.QUERY if facts.dp_size > 1 else 0)
        elif facts.code is not FailureCode.PEER_LOST or time.monotonic() - since > self._patience:
            self._asking_since = None
            self._handle.fail(facts)

    def abort(self) -> None:
        """Give the request up; prefill is told, also before it heard of it."""
        with room_fails(self._room):
            if self._placed:
                self._handle.abort()
            else:
                self._handle.decline("SGLang gave the request up before it had pages for it")

    def clear(self) -> None:
        """Forget the room."""
        super().clear()
        if self.kv_mgr.receivers.get(self.bootstrap_room) is self:
            del self.kv_mgr.receivers[self.bootstrap_room]

    def is_abort_release_safe(self) -> bool:
        """Whether nothing can land in the pages any more."""
        with room_fails(self._room):
            if self._handle.release_safe():
                return True
        return False

    @property
    def abort_notified(self) -> bool:
        """Whether SGLang must keep the pages of this failed room back until they are safe."""
        return not self.is_abort_release_safe()

    def ensure_abort_notified(self, *, force_arm: bool = False) -> None:
        """Nothing: pdcore has told all prefill ranks, and asks them again by itself."""


def _lists(given: Indices | None) -> list[npt.NDArray[np.int64]] | None:
    """Return SGLang's index lists, of which it leaves out those that are empty."""
    if not given:
        return None
    return [np.zeros(0, np.int64) if one is None else np.asarray(one, np.int64).reshape(-1) for one in given]
