"""Where aux data lies: in one row per slot, or each field in memory of its own. Pure descriptions."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from pdcore.checks.fields import natural, several, text
from pdcore.errors import LayoutError
from pdcore.layout.aux_schema import AUX_ALIGNMENT, AuxSchema

__all__ = ["AUX_REGION", "AuxCell", "AuxForm", "AuxRegion", "AuxRun", "runs_between"]

AUX_REGION = "aux"
"""The engine region with the slots' rooms: of whole rows, or of the rooms alone where fields lie apart."""


@attrs.frozen
class AuxRegion:
    """A region of aux data: ``item_len`` bytes per slot, and ``item_stride`` from one slot to the next
    where they are no neighbours (else 0)."""

    name: str = attrs.field(validator=text)
    item_len: int = attrs.field(validator=natural)
    item_stride: int = attrs.field(default=0, validator=natural)

    @property
    def stride(self) -> int:
        """Bytes from the start of a slot to that of the next."""
        return self.item_stride or self.item_len


@attrs.frozen
class AuxCell:
    """Where a slot has one value: in region number ``region``, ``length`` bytes from ``offset`` on, with
    the padding behind it."""

    region: int = attrs.field(validator=natural)
    offset: int = attrs.field(validator=natural)
    length: int = attrs.field(validator=natural)


@attrs.frozen
class AuxForm:
    """The regions of aux data, and a cell for the slot's room and then for each field of the schema.

    Raises:
        LayoutError: a region has no bytes, or a cell lies outside its region.
    """

    regions: tuple[AuxRegion, ...] = attrs.field(validator=several(AuxRegion))
    cells: tuple[AuxCell, ...] = attrs.field(validator=several(AuxCell))

    def __attrs_post_init__(self) -> None:
        wrong = [f"{r.name!r} {r}" for r in self.regions if r.item_len < 1 or r.stride < r.item_len]
        sizes = [r.item_len for r in self.regions]
        wrong += [
            str(c)
            for c in self.cells
            if c.region >= len(sizes) or c.length < 1 or c.offset + c.length > sizes[c.region]
        ]
        if wrong:
            raise LayoutError(
                "the form of aux data contradicts itself",
                f"regions {sizes}; {', '.join(wrong[:4])}",
                "use regions of at least 1 byte per slot, and cells inside them",
            )

    @classmethod
    def rows(cls, schema: AuxSchema) -> AuxForm:
        """Return the form of whole rows, as the schema lays them out: one region."""
        starts = [0, *schema.offsets().values()]
        ends = [*starts[1:], schema.row_len]
        cells = tuple(AuxCell(0, a, b - a) for a, b in zip(starts, ends, strict=True))
        return cls((AuxRegion(AUX_REGION, schema.row_len),), cells)

    @classmethod
    def apart(cls, schema: AuxSchema, strides: Mapping[str, int]) -> AuxForm:
        """Return the form of fields that lie apart: a region for the rooms, and one per field.

        ``strides`` are the bytes from slot to slot of fields whose slots are no neighbours.
        """
        fields = [
            AuxRegion(f"{AUX_REGION}.{f.name}", f.nbytes, strides.get(f.name, 0)) for f in schema.fields
        ]
        regions = (AuxRegion(AUX_REGION, AUX_ALIGNMENT), *fields)
        return cls(regions, tuple(AuxCell(n, 0, r.item_len) for n, r in enumerate(regions)))

    def misfit(self, schema: AuxSchema) -> str:
        """Return how the cells differ from the fields of a schema; empty: they don't."""
        sizes = [8, *(f.nbytes for f in schema.fields)]
        if len(self.cells) != len(sizes):
            return f"{len(self.cells)} cells for the room and {len(sizes) - 1} fields"
        names = ["the room", *(repr(f.name) for f in schema.fields)]
        short = [name for name, c, n in zip(names, self.cells, sizes, strict=True) if c.length < n]
        return f"too few bytes for {', '.join(short)}" if short else ""


@attrs.frozen
class AuxRun:
    """Neighbouring cells that are neighbours on both sides, so that one copy moves them."""

    local_region: int
    local_offset: int
    remote_region: int
    remote_offset: int
    length: int


def runs_between(local: AuxForm, remote: AuxForm) -> tuple[AuxRun, ...]:
    """Return the copies that move one slot between two forms of the same schema."""
    runs: list[AuxRun] = []
    for here, there in zip(local.cells, remote.cells, strict=True):
        length = min(here.length, there.length)
        last = runs[-1] if runs else None
        if last is not None and _follows(last, here, there):
            runs[-1] = attrs.evolve(last, length=last.length + length)
        else:
            runs.append(AuxRun(here.region, here.offset, there.region, there.offset, length))
    return tuple(runs)


def _follows(run: AuxRun, here: AuxCell, there: AuxCell) -> bool:
    ends = run.local_offset + run.length, run.remote_offset + run.length
    return (run.local_region, run.remote_region, *ends) == (
        here.region,
        there.region,
        here.offset,
        there.offset,
    )
