"""Where everything stands in the order in which a rank registers its memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import attrs

from pdcore.contract.regions import Region, RegionInfo
from pdcore.layout.aux_form import AuxForm, AuxRegion
from pdcore.layout.kv import KVBuffer, KVLayout, StateBuffer, StateComponent
from pdcore.layout.staging import RING, StagingLayout

__all__ = ["ExpectedMemory", "RegionTable"]


@attrs.frozen
class ExpectedMemory:
    """What a description says of one region: its name, its length, and those of its items, in bytes."""

    name: str
    length: int
    item_len: int
    item_stride: int

    @classmethod
    def of(cls, name: str, buffer: KVBuffer | StateBuffer | AuxRegion, items: int) -> ExpectedMemory:
        """Return the region of a buffer of so many items."""
        apart = buffer.item_stride if buffer.stride > buffer.item_len else 0
        return cls(name, buffer.stride * (items - 1) + buffer.item_len, buffer.item_len, apart)

    @property
    def stride(self) -> int:
        """Bytes from the start of an item to that of the next."""
        return self.item_stride or self.item_len


@attrs.frozen
class RegionTable:
    """Where everything stands in the registration order: KV buffers, state buffers, aux, the staging region.

    A pure function of the descriptions, so both sides derive the other's table.
    """

    kv: tuple[int, ...]
    state: tuple[tuple[int, ...], ...]
    aux: tuple[int, ...]
    expected: tuple[ExpectedMemory, ...]

    @classmethod
    def of(
        cls,
        layout: KVLayout,
        state: Sequence[StateComponent],
        aux: AuxForm | None,
        aux_slots: int,
        staging: StagingLayout | None = None,
    ) -> RegionTable:
        """Return the table of a rank with these layouts, aux data of this form, and these staging rings."""
        expected = [ExpectedMemory.of(b.name, b, layout.pages_of(b)) for b in layout.buffers]
        kv = tuple(range(len(expected)))
        groups = []
        for component in state:
            groups.append(tuple(range(len(expected), len(expected) + len(component.buffers))))
            expected += [
                ExpectedMemory.of(f"state.{component.kind}.{b.name}", b, component.num_items)
                for b in component.buffers
            ]
        first = len(expected)
        expected += [
            ExpectedMemory.of(region.name, region, aux_slots)
            for region in (aux.regions if aux is not None else ())
        ]
        rows = tuple(range(first, len(expected)))
        if staging is not None:
            expected.append(ExpectedMemory(RING, staging.nbytes, staging.slot_bytes, 0))
        return cls(kv, tuple(groups), rows, tuple(expected))

    def differing(self, regions: Sequence[Region | RegionInfo]) -> list[str]:
        """Return how regions differ from what is expected; empty: they don't."""
        have = [(r.name, r.length, r.item_len, r.item_stride) for r in regions]
        want = [(e.name, e.length, e.item_len, e.item_stride) for e in self.expected]
        return [f"{_words(a)} instead of {_words(b)}" for a, b in zip_longest(have, want) if a != b]


def _words(region: tuple[str, int, int, int] | None) -> str:
    if region is None:
        return "nothing"
    name, length, item_len, stride = region
    return str((name, length)) + (f" in items of {item_len}, {stride} apart" if stride else "")
