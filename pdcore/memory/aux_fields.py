"""Aux fields in memory of their own: the caller's arrays and tensors, one per field, and what they say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pdcore.checks.scalars import shown
from pdcore.contract.regions import Region
from pdcore.errors import LayoutError
from pdcore.layout.aux_form import AUX_REGION
from pdcore.layout.aux_schema import AUX_DTYPES, AuxField, AuxSchema

__all__ = ["field_regions", "fields_of"]

AS_THEY_ARE = "hand in one writable array or tensor per field, of shape (slots, *the field's shape)"


def fields_of(fields: Mapping[str, object]) -> tuple[AuxSchema, int]:
    """Return the schema and the number of slots that the memory of some fields has.

    A dtype that numpy lacks, such as bfloat16, is described by its bits: uint16.

    Raises:
        LayoutError: there are none, they differ in their slots, or one cannot be a field.
        RegistrationError: one is no contiguous memory.
    """
    regions = _regions(fields)
    slots = {name: region.shape[0] for name, region in regions.items()}
    if len(set(slots.values())) != 1:
        there_is = ", ".join(f"{name}: {count}" for name, count in slots.items()) or "no fields"
        raise LayoutError("aux fields need as many slots each", there_is, AS_THEY_ARE)
    schema = tuple(AuxField(name, _dtype(fields[name]), r.shape[1:]) for name, r in regions.items())
    return AuxSchema(schema), next(iter(slots.values()))


def field_regions(schema: AuxSchema, slots: int, fields: Mapping[str, object]) -> tuple[Region, ...]:
    """Return the regions of memory that holds the fields of a schema, in its order.

    Raises:
        LayoutError: a field is missing, unknown, or of another dtype or shape; or they are not all on one
            device.
        RegistrationError: one is no contiguous memory.
    """
    regions = _regions(fields)
    known = {f.name: f for f in schema.fields}
    wrong = [f"{name} is missing" for name in known if name not in regions]
    wrong += [f"{name} is no field" for name in regions if name not in known]
    for name, region in regions.items():
        found, field = (_dtype(fields[name]), region.shape), known.get(name)
        if field is not None and found != (wanted := (field.dtype, (slots, *field.shape))):
            wrong.append(f"{name} is {found[0]}{found[1]} instead of {wanted[0]}{wanted[1]}")
    if wrong:
        raise LayoutError("this memory cannot hold the aux fields", ", ".join(wrong[:4]), AS_THEY_ARE)
    devices = {str(region.device) for region in regions.values()}
    if len(devices) > 1:
        there_is = ", ".join(f"{name} on {region.device}" for name, region in regions.items())
        raise LayoutError("the aux fields lie on different devices", there_is, "keep them all on one")
    return tuple(regions[name] for name in known)


def _regions(fields: Mapping[str, object]) -> dict[str, Region]:
    names = list(fields) if issubclass(type(fields), Mapping) else [None]
    if not all(isinstance(name, str) and name for name in names):
        raise LayoutError("the aux fields are no mapping of names to memory", shown(fields), AS_THEY_ARE)
    regions = {name: Region.of(f"{AUX_REGION}.{name}", memory) for name, memory in fields.items()}
    for name, region in regions.items():
        memory = fields[name]
        if not region.shape or (isinstance(memory, np.ndarray) and not memory.dtype.isnative):
            dtype = getattr(memory, "dtype", None)
            there_is = f"shape {region.shape}, dtype {dtype!s}"
            raise LayoutError(f"this memory cannot hold the aux field {name!r}", there_is, AS_THEY_ARE)
    return regions


def _dtype(memory: object) -> str:
    """Return the dtype of an array or tensor, as a field has it."""
    dtype = getattr(memory, "dtype", None)
    name: str = dtype.name if isinstance(dtype, np.dtype) else str(dtype).rpartition(".")[2]
    return name if name in AUX_DTYPES else f"uint{8 * int(getattr(dtype, 'itemsize', 0))}"
