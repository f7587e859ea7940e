"""How the TP ranks of two groups share out each KV buffer. Pure functions of both sides' layouts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs

from pdcore.layout.kv import Attention, KVBuffer, KVLayout
from pdcore.pairing.topology import Topology, held_units, legal_tp

__all__ = ["shared_units", "told_by_sizes"]


@attrs.frozen
class _SharedBuffer:
    """A buffer that both sides have, and of how many bytes and rows its items are on each."""

    name: str
    layer: int
    units: int
    silent: bool
    sizes: tuple[int, int]
    rows: tuple[int, int]

    @classmethod
    def of(cls, ours: KVLayout, theirs: KVLayout, a: KVBuffer, b: KVBuffer) -> _SharedBuffer:
        silent = a.units is None and b.units is None
        rows = ours.rows_of(a), theirs.rows_of(b)
        return cls(a.name, a.layer, ours.units_of(a), silent, (a.item_len, b.item_len), rows)

    def fits(self, groups: tuple[Topology, Topology], units: int) -> bool:
        """Whether both sides' items hold what their ranks have of so many units."""
        counts = held_units(*groups, units)
        if counts[0] == counts[1]:  # items are copied whole, whatever is in them
            return self.sizes[0] == self.sizes[1]
        here, there = counts[0] * self.rows[0], counts[1] * self.rows[1]
        whole = self.sizes[0] % here == 0 == self.sizes[1] % there
        return whole and self.sizes[0] * there == self.sizes[1] * here


def shared_units(prefill: Topology, decode: Topology, ours: KVLayout, theirs: KVLayout) -> Mapping[str, int]:
    """Return into how many units the TP ranks share out each buffer that both layouts have, by name.

    A buffer is missing if its sizes on the two sides contradict what the layouts say. ``ours`` is
    prefill's; the topologies are without misfits.

    A buffer that does not say its units has its layout's. Where the sizes of a whole layer say otherwise,
    it has fewer heads, and ranks of the larger group hold the same one: how much more a rank of the other
    group holds tells how many heads there are. This is believed only beside a layer that does have
    ``total_kv_heads``; in a layout where none has, ``total_kv_heads`` is wrong, or the sizes are.
    """
    groups = prefill, decode
    there = {b.name: b for b in theirs.buffers}
    pairs = [_SharedBuffer.of(ours, theirs, a, there[a.name]) for a in ours.buffers if a.name in there]
    same = {
        a.name for a in ours.buffers if a.name in there and ours.units_of(a) == theirs.units_of(there[a.name])
    }
    found = {p.name: p.units for p in pairs if (p.name in same or p.silent) and p.fits(groups, p.units)}
    layers: dict[int, list[_SharedBuffer]] = {}
    for pair in pairs:
        if pair.silent:
            layers.setdefault(pair.layer, []).append(pair)
    odd = [layer for layer in layers.values() if any(p.name not in found for p in layer)]
    if ours.attention is Attention.HEADS and len(odd) < len(layers):
        for layer in odd:
            units = _units_of_layer(groups, [p for p in layer if p.name not in found])
            if units is not None and all(p.fits(groups, units) for p in layer):
                found |= {p.name: units for p in layer}
    return found


def told_by_sizes(prefill: Topology, decode: Topology, ours: KVLayout, theirs: KVLayout) -> str:
    """Return of which buffers :func:`shared_units` had to conclude the units, in words; empty: of none."""
    found = shared_units(prefill, decode, ours, theirs)
    concluded = [
        (b.name, found[b.name]) for b in ours.buffers if found.get(b.name, 0) not in (0, ours.units_of(b))
    ]
    if not concluded:
        return ""
    counts = " or ".join(str(count) for count in sorted({count for _, count in concluded}))
    return (
        f"{len(concluded)} buffers, first {concluded[0][0]}, have by their sizes at most {counts} KV heads, "
        f"not the {ours.total_kv_heads} of the layout; say so with KVBuffer(units=...)"
    )


def _units_of_layer(groups: tuple[Topology, Topology], pairs: Sequence[_SharedBuffer]) -> int | None:
    """Return the units that the sizes of a layer's buffers leave; None if there are no such.

    A rank of the larger group holds one of them. Were they fewer still, so that there are replicas in both
    groups, the same copies would be right.
    """
    tp = groups[0].tp_size, groups[1].tp_size
    counts = set()
    for pair in pairs:
        everywhere = min(size * ranks for size, ranks in zip(pair.sizes, tp, strict=True))
        units, rest = divmod(everywhere, min(pair.sizes))
        if pair.sizes[0] == pair.sizes[1]:  # one each, whatever the ranks
            units = math.gcd(*tp)
        counts.add(0 if rest or pair.units % units or not legal_tp(tp, units) else units)
    (units,) = counts if len(counts) == 1 else (0,)
    return units or None
