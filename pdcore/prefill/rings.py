"""Which ring of this side each pair packs its bytes in."""

from __future__ import annotations

from collections.abc import Iterable

from pdcore.contract.engine import EngineCapabilities
from pdcore.errors import EngineError
from pdcore.layout.staging import packs
from pdcore.memory.packing import CopyCost
from pdcore.memory.region_table import RegionTable
from pdcore.memory.staging import StagingMemory
from pdcore.pairing.description import PeerDescription
from pdcore.prefill.facts import facts_of
from pdcore.prefill.lanes.slots import PeerSlots, Ring
from pdcore.protocol.actions import Connect
from pdcore.wire import limit_of

__all__ = ["OwnRings"]


class OwnRings:
    """``engine``: what the one that writes to slots can do, and what an entry costs it."""

    def __init__(self, memory: StagingMemory, ours: PeerDescription, engine: EngineCapabilities) -> None:
        self._memory, self._ours, self._engine = memory, ours, engine
        self._copying = CopyCost.measured(memory.region.device)

    def slots_for(self, do: Connect, used: Iterable[int]) -> PeerSlots | None:
        """Return the slots of a pair, in a ring of this side that is not used; None: bytes cannot go packed.

        Raises:
            EngineError: no ring is left on a side, and they may go no other way; or decode has no such ring.
        """
        there, layout = do.description, self._memory.layout
        taken = set(used)
        number = next((n for n in range(layout.rings) if n not in taken), None)
        if there.staging is None or do.ring is None or number is None:
            # Who gets nothing from here lends no ring.
            if not packs(layout, there.staging) or facts_of(self._ours, there).dummy:
                return None
            full = f"all {layout.rings} are used by decode workers that are paired or leaving"
            raise EngineError(
                f"no staging ring is left for {do.identity}, and transfer.staging is 'always'",
                full if number is None else "it has lent none: all of its own are lent or in doubt",
                f"raise transfer.staging_rings on {'prefill' if number is None else 'decode'}, or start more "
                "workers of that side",
            )
        if not 0 <= do.ring < there.staging.rings:
            raise EngineError(
                f"{do.identity} lends a staging ring that it does not have",
                f"ring {do.ring} of {there.staging.rings}",
                "run the same pdcore on both sides; report it if they are",
            )
        theirs = RegionTable.of(
            there.layout, there.state, there.aux_memory, there.aux_slots, there.staging
        ).expected
        return PeerSlots(
            self._memory,
            Ring(layout, len(self._memory.pools), number),
            Ring(there.staging, len(theirs) - 1, do.ring),
            self._copying,
            self._engine,
            limit_of(self._ours.max_message_bytes, there),
        )
