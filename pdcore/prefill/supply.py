"""What a scheduler announced for one room and has handed in so far."""

from __future__ import annotations

from collections.abc import Sequence

import numpy.typing as npt

from pdcore.arguments import count
from pdcore.errors import KVTransferError, RoomError
from pdcore.plan import IndexArray, index_array
from pdcore.pools import Pools
from pdcore.prefill.delivery import TransferKVChunk
from pdcore.prefill.link import Destination
from pdcore.status import Room

__all__ = ["Supply"]


class Supply:
    """The pages of one room: ``announced`` in all, of which ``sent`` came; ``complete`` with the last chunk.

    Belongs to the sender, whose lock guards it.
    """

    def __init__(self, record: Room, pools: Pools) -> None:
        self.announced: int | None = None
        self.aux_index: int | None = None
        self.sent = 0
        self.complete = False
        self._record = record
        self._pools = pools

    def announcement(self, num_pages: int, aux_index: int | None) -> tuple[int, int | None]:
        """Return what ``init`` is given, as plain integers.

        Raises:
            RoomError: announced before, a negative count, or an aux slot that does not fit the pools.
        """
        room = self._record.room
        pages = count(room, "num_pages", num_pages)
        if self.announced is not None:
            raise RoomError(
                f"init() of room {room} was refused",
                f"num_pages={pages}, announced before: {self.announced}",
                "call init() once, with a count of 0 or more",
            )
        return pages, self._pools.aux_slot(room, aux_index)

    def chunk(self, pages: npt.ArrayLike, state_indices: Sequence[npt.ArrayLike] | None) -> TransferKVChunk:
        """Return the chunk of what ``send`` is given, which is counted once it is ``taken``.

        Raises:
            RoomError: before ``init``, after the last page, or more pages than announced.
            PlanError: pages outside the pool, or state index lists that don't match the components.
            KVTransferError: code AUX, the last chunk, but the aux slot holds another room's values.
        """
        indices = index_array(pages, "KV pages")
        room, total = self._record.room, self.sent + len(indices)
        if self.announced is None or total > self.announced or self.complete:
            raise RoomError(
                f"send() of room {room} was refused",
                f"{len(indices)} pages, {self.sent} sent before, {self.announced or 0} announced by init()",
                "call init() first, and send() until the announced pages are complete",
            )
        self._pools.check_pages(room, indices)
        is_last = total == self.announced
        lists: tuple[IndexArray, ...] = self._pools.state_lists(room, state_indices, due=is_last)
        if is_last and self._pools.aux is not None and self.aux_index is not None:
            self._pools.aux.check_room(self.aux_index, room)
        generation = self._record.generation
        return TransferKVChunk(room, generation, indices, self.sent, is_last, self.aux_index, lists)

    def taken(self, chunk: TransferKVChunk) -> None:
        """Count a chunk."""
        self.sent += len(chunk.pages)
        self.complete = chunk.is_last

    def disagreement(self, destination: Destination) -> KVTransferError | None:
        """Return how a request differs from what was announced, or None."""
        if self.announced is None:
            return None
        return destination.disagreement(self.announced, self.aux_index, self._pools.layout.page_size)
