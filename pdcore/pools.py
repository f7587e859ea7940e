"""The memory of one rank: KV pages, state and aux rows, and the order they are registered in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.errors import LayoutError, PlanError, RoomError
from pdcore.layout import KVLayout, StateComponent
from pdcore.metadata import AUX_REGION, MetadataBuffers
from pdcore.model import RoomId
from pdcore.plan import IndexArray, index_array
from pdcore.regions import Region
from pdcore.scalars import shown, whole
from pdcore.schema import AuxSchema

__all__ = ["Pools", "RegionTable", "StatePool"]


@attrs.frozen
class StatePool:
    """A state component and the memory of its buffers, in their order."""

    component: StateComponent
    regions: tuple[Region, ...]


@attrs.frozen
class RegionTable:
    """Where everything stands in the registration order: KV buffers, state buffers, aux.

    A pure function of the descriptions, so both sides derive the other's table. ``expected``
    holds the name, the length and the item length (bytes) of every region.
    """

    kv: tuple[int, ...]
    state: tuple[tuple[int, ...], ...]
    aux: int | None
    expected: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(
        cls, layout: KVLayout, state: Sequence[StateComponent], aux: AuxSchema | None, aux_slots: int
    ) -> RegionTable:
        """Return the table of a rank with these layouts."""
        expected = [(b.name, b.item_len * layout.num_pages, b.item_len) for b in layout.buffers]
        kv = tuple(range(len(expected)))
        groups = []
        for component in state:
            groups.append(tuple(range(len(expected), len(expected) + len(component.buffers))))
            expected += [
                (f"state.{component.kind}.{b.name}", b.item_len * component.num_items, b.item_len)
                for b in component.buffers
            ]
        if aux is None:
            return cls(kv, tuple(groups), None, tuple(expected))
        expected.append((AUX_REGION, aux.row_len * aux_slots, aux.row_len))
        return cls(kv, tuple(groups), len(expected) - 1, tuple(expected))


class Pools:
    """The pools of one rank, checked against their layouts. ``regions`` is the registration order."""

    def __init__(
        self,
        layout: KVLayout,
        kv: Sequence[Region],
        *,
        state: Sequence[StatePool] = (),
        aux: MetadataBuffers | None = None,
    ) -> None:
        self.layout = layout
        self.kv = tuple(kv)
        self.state = tuple(state)
        self.aux = aux
        regions = [*self.kv, *(r for pool in self.state for r in pool.regions)]
        self.regions: tuple[Region, ...] = (*regions, aux.region) if aux else tuple(regions)
        self.table = RegionTable.of(
            layout,
            [pool.component for pool in self.state],
            aux.schema if aux else None,
            aux.slots if aux else 0,
        )
        found = [(region.name, region.length) for region in self.regions]
        expected = [(name, length) for name, length, _ in self.table.expected]
        if found != expected:
            wrong = [
                f"{have} instead of {want}"
                for have, want in zip_longest(found, expected, fillvalue="nothing")
                if have != want
            ]
            raise LayoutError(
                "the pools are not what their layouts say",
                f"{len(found)} regions instead of {len(self.table.expected)}; (name, bytes): "
                f"{', '.join(wrong[:4])}",
                "hand in one region per buffer, in the layout's order, of num_pages * item_len bytes",
            )
        self.regions = tuple(
            attrs.evolve(region, item_len=item_len)
            for region, (_, _, item_len) in zip(self.regions, self.table.expected, strict=True)
        )
        self.kv = self.regions[: len(self.kv)]

    @classmethod
    def allocate(
        cls, layout: KVLayout, *, state: Sequence[StateComponent] = (), aux: MetadataBuffers | None = None
    ) -> Pools:
        """Allocate host memory for the layouts; the system hands out pages as they are touched."""
        kv = [Region.of(b.name, np.zeros((layout.num_pages, b.item_len), np.uint8)) for b in layout.buffers]
        pools = [
            StatePool(
                component,
                tuple(
                    Region.of(
                        f"state.{component.kind}.{b.name}",
                        np.zeros((component.num_items, b.item_len), np.uint8),
                    )
                    for b in component.buffers
                ),
            )
            for component in state
        ]
        return cls(layout, kv, state=pools, aux=aux)

    def check_pages(self, room: RoomId, pages: IndexArray) -> None:
        """Check that a request's pages exist.

        Raises:
            PlanError: one lies outside the pool.
        """
        _check_inside("pages", room, pages, self.layout.num_pages)

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
            f"aux slot {slot if number is None else number} of room {room} does not exist",
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
        """The KV memory that :meth:`allocate` made: uint8 of shape (num_pages, item_len) per buffer."""
        return tuple(r.owner for r in self.kv if isinstance(r.owner, np.ndarray))


def _each_list(room: RoomId, lists: object) -> Iterable[npt.ArrayLike]:
    if isinstance(lists, Iterable):
        return lists
    if lists is None:
        return ()
    to_do = "hand in a list of lists: one per state component"
    raise PlanError(f"the state indices of room {room} are no lists", shown(lists), to_do)


def _check_inside(what: str, room: RoomId, indices: IndexArray, limit: int) -> None:
    # As unsigned, a negative index is huge: one comparison holds both bounds.
    if len(indices) and int(indices.view(np.uint64).max()) >= limit:
        bad = indices[(indices < 0) | (indices >= limit)]
        raise PlanError(
            f"{what} of room {room} are outside the pool",
            f"{len(bad)} of {len(indices)}, the first is {int(bad[0])}; "
            f"the pool holds {limit} {what.partition(' ')[0]}",
            f"use numbers from 0 to {limit - 1}",
        )
