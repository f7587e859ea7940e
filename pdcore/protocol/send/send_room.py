"""One request on the side that sends: what its scheduler announced and handed in, and who gets it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

import attrs

from pdcore.errors import FailureCode, KVTransferError, RoomError
from pdcore.model import RoomId
from pdcore.plan import IndexArray
from pdcore.protocol.chunk import DeliveryId, TransferKVChunk
from pdcore.protocol.send.early import Destination
from pdcore.protocol.send.lives import Life
from pdcore.wire import Route

__all__ = ["SendRoom"]


@attrs.define(eq=False)
class SendRoom(Life):
    """``announced`` pages from page ``start`` on, of which ``sent`` were handed in; ``supplied``: all were.

    ``waiting`` are chunks that may not leave yet, and whether their source must be waited for; ``unready`` is
    the one that is. ``outstanding`` are deliveries that are not drained, with the rank that they go to.
    """

    announced: int | None = None
    aux_index: int | None = None
    start: int = 0
    sent: int = 0
    chunks: int = 0
    deliveries: int = 0
    supplied: bool = False
    destinations: list[Destination] = attrs.field(factory=list)
    waiting: deque[tuple[TransferKVChunk, bool]] = attrs.field(factory=deque)
    unready: TransferKVChunk | None = None
    outstanding: dict[DeliveryId, int] = attrs.field(factory=dict)
    concluding: bool = False
    undecided: set[tuple[Route, int, int]] | None = None
    """Digests without a verdict: route, chunk and part."""

    @property
    def at_rest(self) -> bool:
        return not self.outstanding

    @property
    def done(self) -> bool:
        """Whether all was handed in and has arrived."""
        idle = not self.waiting and self.unready is None and not self.outstanding
        return self.supplied and idle and self.complete

    def remembered(self) -> Life:
        """Return its life alone: the lists of pages that it was asked for go with the room."""
        life = Life(self.room, self.generation, self.opened_at, self.deadline, self.status, self.failure)
        life.ended_at, life.cleared, life.complete = self.ended_at, self.cleared, self.complete
        life.cleared_at, life.packed = self.cleared_at, self.packed
        life.heard, life.speakers, life.promised = self.heard, self.speakers, self.promised
        return life

    def in_flight(self) -> Counter[int]:
        """Return the deliveries under way by the rank that they go to."""
        return Counter(self.outstanding.values())

    def announce(self, pages: int, aux_index: int | None, start: int) -> None:
        """Take what ``init`` says; raises what :meth:`require_unannounced` does."""
        self.require_unannounced(pages)
        self.announced, self.aux_index, self.start = pages, aux_index, start

    def require_unannounced(self, pages: int) -> None:
        """Check that so many pages may be announced.

        Raises:
            RoomError: some were before.
        """
        if self.announced is not None:
            raise RoomError(
                f"init() of room {self.room} was refused",
                f"num_pages={pages}, announced before: {self.announced}",
                "call init() once, with a count of 0 or more",
            )

    def supply(self, pages: IndexArray, state_indices: tuple[IndexArray, ...]) -> TransferKVChunk:
        """Take the next pages.

        Raises:
            RoomError: before ``init``, after the last page, or more pages than announced.
        """
        is_last = self.would_complete(len(pages))
        start = self.start + self.sent
        chunk = TransferKVChunk(
            self.room, self.generation, pages, start, is_last, self.aux_index, state_indices
        )
        self.sent, self.supplied = self.sent + len(pages), is_last
        return chunk

    def would_complete(self, pages: int) -> bool:
        """Return whether so many more pages are the last.

        Raises:
            RoomError: before ``init``, after the last page, or more pages than announced.
        """
        total = self.sent + pages
        if self.announced is None or total > self.announced or self.supplied:
            raise RoomError(
                f"send() of room {self.room} was refused",
                f"{pages} pages, {self.sent} sent before, {self.announced or 0} announced by init()",
                "call init() first, and send() until the announced pages are complete",
            )
        return total == self.announced

    def disagreement(self, page_size: int) -> KVTransferError | None:
        """Return how its destinations' requests differ from each other or what was announced, or None."""
        destinations = self.destinations
        if not destinations:
            return None
        prefix = destinations[0].wanted.decode_prefix_len
        for d in destinations:
            if d.wanted.decode_prefix_len != prefix:
                return _prefixes_differ(self.room, destinations)
        if self.announced is None and prefix >= 0:
            return None
        for d in destinations:
            if (misfit := self._misfit(d, page_size)) is not None:
                return misfit
        return None

    def _misfit(self, destination: Destination, page_size: int) -> KVTransferError | None:
        wanted, pages, start, who = destination.wanted, self.announced or 0, self.start, destination.peer
        held = wanted.decode_prefix_len // page_size
        if start > held >= 0:
            return KVTransferError(
                FailureCode.PLAN,
                f"prefill starts room {self.room} beyond what decode holds",
                f"start_page={start}, decode holds {held} whole pages: {wanted.decode_prefix_len} tokens of "
                f"{page_size} a page ({who})",
                "start at decode_prefix_len of the sender in whole pages, or before",
            )
        same_aux = not who.facts.carries_aux or (wanted.aux_index is None) == (self.aux_index is None)
        if held >= 0 and len(wanted.pages) + held == start + pages and same_aux:
            return None
        since = f" from page {start} on" if start else ""
        return KVTransferError(
            FailureCode.PLAN,
            f"prefill and decode disagree about room {self.room}",
            f"prefill announces {pages} pages{since} and aux slot {self.aux_index}, decode holds {held} "
            f"pages and wants {len(wanted.pages)}, and aux slot {wanted.aux_index} ({who})",
            "hand the same request to both sides: its pages, and an aux slot to both or to none",
        )


def _prefixes_differ(room: RoomId, destinations: Sequence[Destination]) -> KVTransferError:
    told = "; ".join(f"{d.peer}: {d.wanted.decode_prefix_len} tokens" for d in destinations)
    return KVTransferError(
        FailureCode.PLAN,
        f"decode ranks disagree about what they hold of room {room}",
        told,
        "hand the same decode_prefix_len to send_metadata() on all ranks of a decode group",
    )
