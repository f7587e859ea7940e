"""The memory of one rank: KV pages, state and aux data, and the order they are registered in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, TypeVar

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.arguments import instance
from pdcore.checks.fields import as_several
from pdcore.checks.scalars import several, shown, whole
from pdcore.contract.regions import Region
from pdcore.errors import LayoutError, PlanError, RoomError
from pdcore.layout.kv import KVBuffer, KVLayout, StateBuffer, StateComponent
from pdcore.memory.aux_rows import device_memory, host_memory
from pdcore.memory.handed_in import regions_of
from pdcore.memory.metadata_buffers import MetadataBuffers
from pdcore.memory.region_table import ExpectedMemory, RegionTable
from pdcore.memory.shapes import require_items_first, require_order
from pdcore.model import CPU, Device, RoomId
from pdcore.plan import IndexArray, index_array

__all__ = ["Pools", "StatePool"]


@attrs.frozen
class StatePool:
    """A state component and the memory of its buffers, in their order; arrays become regions in the pools."""

    component: StateComponent
    regions: tuple[Region, ...]


class Pools:
    """The pools of one rank, checked against their layouts. ``regions`` is the registration order.

    ``num_pages`` are the pages that a request may have: those that all buffers have. ``kv`` holds a region,
    a numpy array or a tensor per buffer, in the layout's order.

    Raises:
        LayoutError, ArgumentError: a part is of another kind, or memory and layout contradict each other.
        RegistrationError: a region cannot be made of an array or tensor.
    """

    def __init__(
        self,
        layout: KVLayout,
        kv: Sequence[object],
        *,
        state: Sequence[StatePool] = (),
        aux: MetadataBuffers | None = None,
    ) -> None:
        _check_parts(layout, aux)
        kv = regions_of("the KV memory of pools", [b.name for b in layout.buffers], kv)
        state = [_as_it_lies(pool) for pool in as_several("the state of pools", StatePool, state)]
        self.layout = attrs.evolve(layout, buffers=_as_they_lie(layout.buffers, kv))
        self.aux = aux
        regions = [*kv, *(r for pool in state for r in pool.regions)]
        regions = [*regions, *aux.regions] if aux else regions
        self.table = RegionTable.of(
            self.layout,
            [pool.component for pool in state],
            aux.form if aux else None,
            aux.slots if aux else 0,
        )
        items = zip_longest(regions, self.table.expected)
        self.regions: tuple[Region, ...] = tuple(_with_items(r, e) for r, e in items if r is not None)
        if wrong := self.table.differing(self.regions):
            raise LayoutError(
                "the pools are not what their layouts say",
                f"{len(regions)} regions instead of {len(self.table.expected)}; (name, bytes): "
                f"{', '.join(wrong[:4])}",
                "hand in one region per buffer, in the layout's order, of num_pages * item_len bytes, or of "
                "num_pages pages with gaps between them; of a tensor (2, blocks, ...) hand in t[0] and t[1]",
            )
        self.kv = self.regions[: len(kv)]
        require_order(self.layout, self.kv)
        require_items_first(self.kv, [layout.pages_of(b) for b in layout.buffers])
        for pool in state:
            require_items_first(pool.regions, [pool.component.num_items] * len(pool.regions))
        self._smallest = self.layout.smallest
        self.num_pages = self.layout.pages_of(self._smallest)
        self.state = tuple(
            attrs.evolve(pool, regions=tuple(self.regions[n] for n in numbers))
            for pool, numbers in zip(state, self.table.state, strict=True)
        )

    @classmethod
    def allocate(
        cls,
        layout: KVLayout,
        *,
        state: Sequence[StateComponent] = (),
        aux: MetadataBuffers | None = None,
        device: Device = CPU,
    ) -> Pools:
        """Allocate memory for the layouts, all zero; the host's pages are handed out as they are touched.

        Raises:
            LayoutError: there is no such memory, or torch has no such device.
        """
        _check_parts(layout, aux)
        kv = [_allocated(b.name, b, layout.pages_of(b), device) for b in layout.buffers]
        pools = [
            StatePool(
                component,
                tuple(
                    _allocated(f"state.{component.kind}.{b.name}", b, component.num_items, device)
                    for b in component.buffers
                ),
            )
            for component in as_several("the state of pools", StateComponent, state)
        ]
        return cls(layout, kv, state=pools, aux=aux)

    def check_pages(self, room: RoomId, pages: IndexArray) -> None:
        """Check that a request's pages exist in every buffer.

        Raises:
            PlanError: one lies outside the pool; where buffers differ in pages, the smallest one is named.
        """
        own = self._smallest.num_pages is not None
        _check_inside("pages", room, pages, self.num_pages, f" in {self._smallest.name}" if own else "")

    def aux_slot(self, room: RoomId, slot: int | None) -> int | None:
        """Return a request's aux slot as a plain int, or None.

        Raises:
            RoomError: it is no integer, it doesn't exist, or there are no aux buffers.
        """
        if slot is None:
            return None
        slots, number = self.aux.slots if self.aux else 0, whole(slot)
        if number is not None and 0 <= number < slots:
            return number
        raise RoomError(
            f"aux slot {shown(slot) if number is None else number} of room {room} does not exist",
            f"slots 0 to {slots - 1}" if slots else "the pools have no aux buffers",
            "hand in a slot of the pools' MetadataBuffers, or none",
        )

    def state_lists(
        self, room: RoomId, lists: Sequence[npt.ArrayLike] | None, *, due: bool
    ) -> tuple[IndexArray, ...]:
        """Return private copies of a request's state index lists, one per component where they are due.

        Raises:
            PlanError: there are more or fewer lists, or an item is outside its component.
        """
        arrays = tuple(index_array(items, "state indices") for items in _each_list(room, lists))
        if len(arrays) != (len(self.state) if due else 0):
            raise PlanError(
                f"the state index lists of room {room} do not match",
                f"{len(arrays)} lists, {len(self.state)} state components, last chunk: {due}",
                "hand in one list per state component with the last chunk, and none before",
            )
        for pool, items in zip(self.state if due else (), arrays, strict=True):
            component = pool.component
            _check_inside(f"items of state {component.kind!r}", room, items, component.num_items)
        return arrays

    @property
    def arrays(self) -> tuple[npt.NDArray[np.uint8], ...]:
        """The KV memory that :meth:`allocate` made: uint8 of shape (pages, item_len) per buffer."""
        return tuple(r.owner for r in self.kv if isinstance(r.owner, np.ndarray))


def _each_list(room: RoomId, lists: object) -> Sequence[Any]:
    if lists is None:
        return ()
    if (given := several(lists)) is not None:
        return given
    to_do = "hand in a list of lists: one per state component"
    raise PlanError(f"the state indices of room {room} are no lists", shown(lists), to_do)


def _check_inside(what: str, room: RoomId, indices: IndexArray, limit: int, where: str = "") -> None:
    # As unsigned, a negative index is huge: one comparison holds both bounds.
    if np.count_nonzero(indices.view(np.uint64) >= np.uint64(limit)):
        bad = indices[(indices < 0) | (indices >= limit)]
        raise PlanError(
            f"{what} of room {room} are outside the pool",
            f"{len(bad)} of {len(indices)}, the first is {int(bad[0])}; "
            f"the pool holds {limit} {what.partition(' ')[0]}{where}",
            f"use numbers from 0 to {limit - 1}",
        )


Buffer = TypeVar("Buffer", KVBuffer, StateBuffer)


def _as_they_lie(buffers: Sequence[Buffer], regions: Sequence[Region]) -> tuple[Buffer, ...]:
    """Return the buffers with the strides of their regions, where they say none."""
    strides = [r.item_stride if r.item_stride > r.item_len else 0 for r in regions[: len(buffers)]]
    strides += [0] * (len(buffers) - len(strides))
    return tuple(
        b if b.item_stride or not stride else attrs.evolve(b, item_stride=stride)
        for b, stride in zip(buffers, strides, strict=True)
    )


def _as_it_lies(pool: StatePool) -> StatePool:
    component = pool.component
    names = [f"state.{component.kind}.{b.name}" for b in component.buffers]
    regions = regions_of(f"the memory of state {component.kind!r}", names, pool.regions)
    buffers = _as_they_lie(component.buffers, regions)
    return StatePool(attrs.evolve(component, buffers=buffers), regions)


def _check_parts(layout: KVLayout, aux: MetadataBuffers | None) -> None:
    instance("the layout of pools", layout, KVLayout, "hand in KVLayout.heads(...) or KVLayout.latent(...)")
    if aux is not None:
        instance("the aux of pools", aux, MetadataBuffers, "hand in MetadataBuffers(schema, slots)")


def _with_items(region: Region, expected: ExpectedMemory | None) -> Region:
    """Return a region that says its items: those expected, if it says none itself and they fit its length."""
    if expected is None or region.item_stride > region.item_len or region.length != expected.length:
        return region
    return attrs.evolve(region, item_len=expected.item_len, item_stride=expected.item_stride)


def _allocated(name: str, buffer: KVBuffer | StateBuffer, items: int, device: Device) -> Region:
    if device == CPU:
        return Region.of(name, host_memory(name, items, buffer.stride)[:, : buffer.item_len])
    return Region.of(name, device_memory(name, items, buffer.stride, device)[:, : buffer.item_len])
