"""KVReceiver: one request on the decode side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy.typing as npt

from pdcore.arguments import count
from pdcore.config.records import Config
from pdcore.decode.placement import Placement, declined, refused
from pdcore.errors import RoomError
from pdcore.events.metrics import Moments, RequestMetrics
from pdcore.memory.pools import Pools
from pdcore.model import KVPoll, PeerIdentity, RoomId
from pdcore.pairing.topology import DPChoice
from pdcore.protocol.groups import GroupKey
from pdcore.protocol.receive.receive_room import ReceiveRoom
from pdcore.protocol.stimuli import Choose, Place
from pdcore.rooms.claims import Claim, Claims
from pdcore.rooms.handle import NOT_ENDED, Feeds, RoomHandle, raises_or_fails

__all__ = ["KVReceiver", "ReceiverHost"]


class ReceiverHost(Feeds, Protocol):
    """What a receiver needs of its manager."""

    claims: Claims
    config: Config
    pools: Pools

    def group_key(self, bootstrap: str, choice: int | DPChoice, room: RoomId) -> GroupKey:
        """Return what names the group that a choice means for a room, at a bootstrap service."""

    def unproven(self, writer: PeerIdentity) -> str:
        """Why a prefill process may still write to rooms that have ended."""


class KVReceiver(RoomHandle):
    """Receives the KV cache of one room. Made by ``DecodeManager.receiver``; one thread calls it."""

    side = "decode"
    record: ReceiveRoom

    def __init__(
        self, host: ReceiverHost, record: ReceiveRoom, bootstrap: str, *, may_raise: bool = True
    ) -> None:
        super().__init__(host, record, may_raise=may_raise)
        self._host, self._bootstrap = host, bootstrap
        self._placement: Placement | None = None
        self.claim: Claim | None = None

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
        if self.record.key is not None:
            raise RoomError(
                f"init() of room {self.room} was called twice", f"prefill {self._bootstrap}", "call it once"
            )
        by_room = choice is DPChoice.BY_ROOM
        key = self.record.default if by_room else self._host.group_key(self._bootstrap, choice, self.room)
        self._feed(Choose(self.record.generation, key))

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
            initialised=record.key is not None,
            placed=self._placement is not None,
            decode_prefix_len=decode_prefix_len,
            prefix_reuse=self._host.config.transfer.prefix_reuse,
        )
        if error is not None:
            raise error
        placement = Placement.checked(record, pools, pages, aux_index, state_indices, decode_prefix_len)
        slot = placement.aux_index
        self.claim = self._host.claims.take(self, placement.pages, slot, placement.state_indices)
        if pools.aux is not None and slot is not None:
            pools.aux.empty(slot)
        self._placement = placement
        trace = self.events.traceparent(record.room, record.generation) if self.events.on else None
        self._feed(Place(record.generation, placement.request(record, trace)))
        self.release_safe()  # if it failed meanwhile

    def decline(self, reason: str = "") -> None:
        """Have nothing sent, since decode has no use for it: it holds all, or the request is over.

        May come at any time, also before ``init``: then the replica that a router gives the room is told.
        Unless it has ended, the room ends as FAILED on both sides with code DECLINED, which is no error, and
        the reason. Prefill may reuse its pages at once, if none was under way.
        """
        self._require_here()
        self.give_up(declined(self.room, reason))

    def release_safe(self) -> bool:
        self._require_here()
        if self.record.silent:
            self.fell_silent()
        return self.record.silent

    def unsafe_because(self) -> str:
        if not self.record.over:
            return NOT_ENDED
        writers = list(self.record.writers)
        return "; ".join(sorted(f"{writer}: {self._host.unproven(writer)}" for writer in writers))

    def metric(self) -> RequestMetrics:
        record, pages = self.record, len(self._placement.pages) if self._placement else 0
        return RequestMetrics.between(
            self.room,
            record.status,
            record.opened_at,
            Moments(record.met_at, record.first_at),
            record.ended_at,
            pages=pages,
            nbytes=pages * self._host.pools.layout.page_bytes,
            slots=len(record.unpacked),
        )

    def fell_silent(self) -> None:
        claim, self.claim = self.claim, None  # which knows its holder: a circle
        self._host.claims.free(claim)
