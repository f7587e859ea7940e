"""Where decode wants one request, or that it does not: what a scheduler says, checked."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy.typing as npt

from pdcore.arguments import count
from pdcore.checks.scalars import shown, whole
from pdcore.errors import FailureCode, KVTransferError, RoomError
from pdcore.memory.pools import Pools
from pdcore.model import RoomId
from pdcore.plan import IndexArray, index_array
from pdcore.protocol.room import Room
from pdcore.wire import RequestMetadata

__all__ = ["Placement", "declined", "refused"]


@attrs.frozen(eq=False)
class Placement:
    """The pages, aux slot and state items of one request, and how many tokens decode holds already."""

    pages: IndexArray
    aux_index: int | None
    state_indices: tuple[IndexArray, ...]
    decode_prefix_len: int

    @classmethod
    def checked(
        cls,
        room: Room,
        pools: Pools,
        pages: npt.ArrayLike,
        aux_index: int | None,
        state_indices: Sequence[npt.ArrayLike] | None,
        decode_prefix_len: int,
    ) -> Placement:
        """Return what ``send_metadata`` is given, if all of it lies in the pools.

        Raises:
            RoomError: a bad aux slot.
            PlanError: pages outside the pool, or index lists that don't match the components.
        """
        indices = index_array(pages, "KV pages")
        pools.check_pages(room.room, indices)
        slot = pools.aux_slot(room.room, aux_index)
        prefix = count(room.room, "decode_prefix_len", decode_prefix_len)
        return cls(indices, slot, pools.state_lists(room.room, state_indices, due=True), prefix)

    def request(self, room: Room, trace: str | None) -> RequestMetadata:
        """Return the message to prefill; what is left of the deadline is put in when it goes out."""
        return RequestMetadata(
            room.room,
            room.generation,
            self.pages,
            self.aux_index,
            self.state_indices,
            self.decode_prefix_len,
            0.0,
            trace,
        )


def refused(
    room: Room, *, initialised: bool, placed: bool, decode_prefix_len: int, prefix_reuse: bool
) -> RoomError | None:
    """Return why ``send_metadata`` may not be called now, or so; None if it may."""
    prefix = whole(decode_prefix_len)
    given = shown(decode_prefix_len) if prefix is None else prefix
    if initialised and not placed and prefix is not None and prefix >= 0 and (prefix_reuse or not prefix):
        return None
    return RoomError(
        f"send_metadata() of room {room.room} was refused",
        f"init() called: {initialised}, metadata sent before: {placed}, "
        f"decode_prefix_len={given}, transfer.prefix_reuse={prefix_reuse}",
        "call init(), then send_metadata() once, with the tokens that decode holds (0: none)",
    )


def declined(room: RoomId, reason: str) -> KVTransferError:
    """Return how a room ends that decode has no use for."""
    return KVTransferError(
        FailureCode.DECLINED,
        f"decode declined room {room}",
        str(reason) or "it gave no reason",
        "nothing: no page is awaited there, so prefill may free its own",
    )
