"""Memory of pools as callers hand it in: regions, or arrays and tensors that the layout names."""

from __future__ import annotations

from collections.abc import Sequence

from pdcore.checks.scalars import shown
from pdcore.contract.regions import Region
from pdcore.errors import LayoutError

__all__ = ["regions_of"]


def regions_of(what: str, names: Sequence[str], memory: object) -> tuple[Region, ...]:
    """Return one region per buffer: those handed in, or those of arrays and tensors in their order.

    Raises:
        LayoutError: it is no list or tuple; how many there must be, the pools say.
        RegistrationError: a region cannot be made of one.
    """
    if not isinstance(memory, Sequence) or isinstance(memory, str | bytes):
        raise LayoutError(
            f"{what} is no list of memory",
            f"{shown(memory)}, and the layout has {len(names)} buffers",
            "hand in a list with one Region, numpy array or tensor per buffer, in the layout's order",
        )
    unnamed = [f"memory {number}" for number in range(len(names), len(memory))]
    return tuple(
        given if isinstance(given, Region) else Region.of(name, given)
        for name, given in zip([*names, *unnamed], memory, strict=False)
    )
