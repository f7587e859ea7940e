"""The slots of one pair: bytes are packed into one here, and written to the one of that number there."""

from __future__ import annotations

import threading
from collections.abc import Callable

import attrs

from pdcore.contract.engine import EngineCapabilities
from pdcore.contract.regions import WriteBatch
from pdcore.errors import FailureCode, KVTransferError
from pdcore.layout.staging import StagingLayout, packs
from pdcore.memory.packing import CopyCost, Entries, pack
from pdcore.memory.staging import StagingMemory
from pdcore.model import Deadline
from pdcore.wire import FRAME_BYTES

__all__ = ["PeerSlots", "Ring", "pays"]

HANDOVER = 400e-6
"""Seconds that it takes to tell of a slot, and to hear that it is free again."""
CLEARLY = 2.0
"""How many times faster packing must look: both sides' processors pay for it."""
NAMED_BYTES = 32
"""Of a message, for each entry that it names: offset and length, and at worst a region and a start."""


def pays(entries: int, nbytes: int, entry_cost: float, copying: CopyCost, slot_bytes: int) -> bool:
    """Return whether some copies go faster packed than each as an entry of its own.

    ``entry_cost``: what one more entry costs the engine, in seconds. Bytes that are packed are copied twice.
    """
    packed = 2 * (entries * copying.per_entry + nbytes * copying.per_byte)
    packed += -(-nbytes // slot_bytes) * (HANDOVER + entry_cost)
    return entries * entry_cost > CLEARLY * packed


@attrs.frozen
class Ring:
    """A ring of one side: its number, in the region ``region`` of a table, and where that has it."""

    layout: StagingLayout
    region: int
    number: int


class PeerSlots:
    """``limit``: bytes that the peer takes in one message. ``always``: nothing goes another way. Of a slot,
    ``slot_bytes`` are used: what both sides have, and the ``engine`` writes with one entry.

    ``ring`` is the one of this side, ``lent`` that of the peer. Of those that are taken, the engine may
    have ``_out``, some of them ``_in_doubt``. The condition guards all that changes.
    """

    def __init__(
        self,
        memory: StagingMemory,
        here: Ring,
        there: Ring,
        copying: CopyCost,
        engine: EngineCapabilities,
        limit: int,
    ) -> None:
        self._memory, self._here, self._there = memory, here, there
        self._copying, self._entry_cost = copying, engine.entry_cost
        self.ring, self.lent = here.number, there.number
        self.always = packs(here.layout, there.layout)
        both = min(here.layout.slot_bytes, there.layout.slot_bytes)
        self.slot_bytes = min(both, engine.max_entry_bytes or both)
        self.most_entries = max(1, (limit - 2 * FRAME_BYTES) // NAMED_BYTES)
        self._free = list(range(min(here.layout.slots, there.layout.slots)))
        self._handed: dict[int, int] = {}
        self._out = self._in_doubt = 0
        self._when_quiet: Callable[[], None] | None = None
        self._changed = threading.Condition()

    def wanted_for(self, entries: int, nbytes: int) -> bool:
        """Whether some copies shall go packed."""
        if self.always:
            return entries > 0
        if self.dead:
            return False
        return pays(entries, nbytes, self._entry_cost, self._copying, self.slot_bytes)

    @property
    def dead(self) -> bool:
        """Whether no slot comes free any more, as far as is known: failed writes may land in all of them."""
        return not self._free and self._in_doubt >= min(self._here.layout.slots, self._there.layout.slots)

    def take(self) -> int | None:
        """Take a slot that is free; never blocks."""
        with self._changed:
            if not self._free:
                return None
            self._out += 1
            return self._free.pop(0)

    def give(self, slot: int) -> None:
        """A slot is free: nothing was written to it, or what was is of no use."""
        with self._changed:
            self._free.append(slot)
            self._changed.notify_all()
        self._came_in()

    def hand(self, slot: int, number: int) -> None:
        """The peer is told of a slot that has arrived: it is its own until use ``number`` of it is over."""
        with self._changed:
            self._handed[slot] = number
        self._came_in()

    def back(self, slot: int, number: int) -> None:
        """Use ``number`` of a slot is over; that of an earlier pairing with the same peer means nothing."""
        with self._changed:
            mine = self._handed.get(slot) == number
            if mine:
                del self._handed[slot]
                self._free.append(slot)
                self._changed.notify_all()

    def doubt(self) -> None:
        """Bytes may still land in a slot: who took it gives it back when they cannot."""
        with self._changed:
            self._in_doubt += 1
            self._changed.notify_all()

    def believe(self, slot: int) -> None:
        """No byte can land any more in a slot that was doubted."""
        with self._changed:
            self._in_doubt -= 1
        self.give(slot)

    def when_quiet(self, tell: Callable[[], None] | None) -> None:
        """Call this when the engine has none of the slots, now if so; no other is taken any more."""
        with self._changed:
            self._when_quiet = tell
            quiet = not self._out
        if quiet and tell is not None:
            tell()

    def _came_in(self) -> None:
        """One that was taken is not the engine's any more: nothing can land in it."""
        with self._changed:
            self._out -= 1
            tell = self._when_quiet if not self._out else None
        if tell is not None:
            tell()

    def wait(self, deadline: Deadline) -> bool:
        """Wait until a slot is free or none will be; return False at the deadline."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._free) or self.dead, deadline.remaining())

    def pack(self, slot: int, piece: WriteBatch, read: Callable[[], None]) -> WriteBatch:
        """Copy a piece into a slot of this side; return the copy from there to the peer's.

        ``read`` is told that the piece is not read any more.
        """
        nbytes, here, there = piece.nbytes, self._here, self._there
        entries = Entries(piece.local_regions, piece.starts, piece.local_offsets, piece.lengths)
        try:
            pack(self._memory.pools, entries, self._memory.slot(here.number, slot, nbytes))
        finally:
            read()
        at = here.layout.offset(here.number, slot), there.layout.offset(there.number, slot)
        return WriteBatch.of(here.region, there.region, [at[0]], [at[1]], [nbytes])

    def exhausted(self) -> KVTransferError:
        """Return why nothing can be sent: no slot comes free any more."""
        return KVTransferError(
            FailureCode.ENGINE,
            "no staging slot is left to send through",
            f"writes to all {self._in_doubt} failed, and the engine cannot prove that they have ended",
            "start this worker again, since transfer.staging is 'always'; look why its engine's writes fail"
            if self.always
            else "send the request again: it goes unpacked; look why the engine's writes fail",
        )
