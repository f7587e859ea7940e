"""What a scheduler announced for one room and has handed in so far, and whether decode wants just that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy.typing as npt

from pdcore.arguments import count
from pdcore.errors import FailureCode, KVTransferError, RoomError
from pdcore.memory.pools import Pools
from pdcore.model import RoomId
from pdcore.plan import IndexArray, index_array
from pdcore.prefill.delivery import TransferKVChunk
from pdcore.prefill.link import Destination
from pdcore.rooms.status import Room

__all__ = ["Supply"]


class Supply:
    """The pages of one room: ``announced`` in all, of which ``sent`` came; ``complete`` with the last chunk.

    Those of the request before page ``start`` neither count nor come: decode holds them.

    Belongs to the sender, whose lock guards it.
    """

    def __init__(self, record: Room, pools: Pools) -> None:
        self.announced: int | None = None
        self.aux_index: int | None = None
        self.start = 0
        self.sent = 0
        self.complete = False
        self._record = record
        self._pools = pools

    def announcement(
        self, num_pages: int, aux_index: int | None, start_page: int
    ) -> tuple[int, int | None, int]:
        """Return what ``init`` is given, as plain integers.

        Raises:
            RoomError: announced before, a negative count, or an aux slot that does not fit the pools.
        """
        room = self._record.room
        pages, start = count(room, "num_pages", num_pages), count(room, "start_page", start_page)
        if self.announced is not None:
            raise RoomError(
                f"init() of room {room} was refused",
                f"num_pages={pages}, announced before: {self.announced}",
                "call init() once, with a count of 0 or more",
            )
        return pages, self._pools.aux_slot(room, aux_index), start

    def announce(self, num_pages: int, aux_index: int | None, start: int) -> None:
        """Take what was announced."""
        self.announced, self.aux_index, self.start = num_pages, aux_index, start

    def chunk(self, pages: npt.ArrayLike, state_indices: Sequence[npt.ArrayLike] | None) -> TransferKVChunk:
        """Return the chunk of what ``send`` is given, which is counted once it is ``taken``.

        Raises:
            RoomError: before ``init``, after the last page, or more pages than announced.
            PlanError: pages outside the pool, or state index lists that don't match the components.
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
        generation = self._record.generation
        start = self.start + self.sent
        return TransferKVChunk(room, generation, indices, start, is_last, self.aux_index, lists)

    def check_aux(self, chunk: TransferKVChunk) -> None:
        """Check that the aux slot holds this room's values, which go with the last chunk.

        Raises:
            KVTransferError: code AUX, it holds another room's.
        """
        if chunk.is_last and self._pools.aux is not None and self.aux_index is not None:
            self._pools.aux.check_room(self.aux_index, self._record.room)

    def taken(self, chunk: TransferKVChunk) -> None:
        """Count a chunk."""
        self.sent += len(chunk.pages)
        self.complete = chunk.is_last

    def disagreement(self, destinations: Sequence[Destination]) -> KVTransferError | None:
        """Return how the requests of decode ranks differ from each other or what was announced, or None."""
        prefixes = {d.wanted.decode_prefix_len: d for d in destinations}
        if len(prefixes) > 1:
            return _prefixes_differ(self._record.room, prefixes)
        if self.announced is None and min(prefixes, default=0) >= 0:
            return None
        return next(filter(None, map(self._misfit, destinations)), None)

    def _misfit(self, destination: Destination) -> KVTransferError | None:
        wanted, num_pages, start = destination.wanted, self.announced or 0, self.start
        tokens, page_size = wanted.decode_prefix_len, self._pools.layout.page_size
        held = tokens // page_size
        if start > held >= 0:
            return _starts_late(destination, start, held, page_size)
        same_aux = not destination.link.carries_aux or (wanted.aux_index is None) == (self.aux_index is None)
        if held >= 0 and len(wanted.pages) + held == start + num_pages and same_aux:
            return None
        since = f" from page {start} on" if start else ""
        return KVTransferError(
            FailureCode.PLAN,
            f"prefill and decode disagree about room {wanted.room}",
            f"prefill announces {num_pages} pages{since} and aux slot {self.aux_index}, decode holds {held} "
            f"pages and wants {len(wanted.pages)}, and aux slot {wanted.aux_index} "
            f"({destination.link.identity})",
            "hand the same request to both sides: its pages, and an aux slot to both or to none",
        )


def _starts_late(destination: Destination, start: int, held: int, page_size: int) -> KVTransferError:
    wanted = destination.wanted
    return KVTransferError(
        FailureCode.PLAN,
        f"prefill starts room {wanted.room} beyond what decode holds",
        f"start_page={start}, decode holds {held} whole pages: {wanted.decode_prefix_len} tokens of "
        f"{page_size} a page ({destination.link.identity})",
        "start at decode_prefix_len of the sender in whole pages, or before",
    )


def _prefixes_differ(room: RoomId, prefixes: Mapping[int, Destination]) -> KVTransferError:
    told = "; ".join(f"{d.link.identity}: {tokens} tokens" for tokens, d in prefixes.items())
    return KVTransferError(
        FailureCode.PLAN,
        f"decode ranks disagree about what they hold of room {room}",
        told,
        "hand the same decode_prefix_len to send_metadata() on all ranks of a decode group",
    )
