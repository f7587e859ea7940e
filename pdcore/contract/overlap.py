"""Regions that lie between one another, for engines that register a byte only once."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from pdcore.contract.regions import Region

__all__ = ["joined"]


def joined(regions: Sequence[Region]) -> tuple[Region, ...]:
    """Return regions that cover the same memory, by device and address: those that lie between one another
    as one, without items, whose name counts them.

    So lie the pools of one allocation where keys and values, or the layers, of a block are neighbours:
    their items have gaps, in which are the others'. Regions without gaps that overlap stay as they are, for
    the engine to refuse: they are a mistake.
    """
    out: list[Region] = []
    gaps, count = False, 1
    for region in sorted(regions, key=lambda r: (r.device.kind.value, r.device.index, r.address)):
        last = out[-1] if out else None
        gaps = gaps or region.item_stride > 0
        if (
            last is None
            or not gaps
            or region.device != last.device
            or region.address >= last.address + last.length
        ):
            out.append(region)
            gaps, count = region.item_stride > 0, 1
            continue
        end = max(last.address + last.length, region.address + region.length)
        name = last.name.removesuffix(f" and {count - 1} more")
        out[-1] = attrs.evolve(
            last, name=f"{name} and {count} more", length=end - last.address, item_len=0, item_stride=0
        )
        count += 1
    return tuple(out)
