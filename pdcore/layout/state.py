"""State of a request beside its KV pages: what is where in memory. Pure descriptions."""

from __future__ import annotations

import math

import attrs

from pdcore.checks.fields import integer, integers, optional_integer, several, text
from pdcore.checks.names import repeated
from pdcore.errors import LayoutError

__all__ = ["StateBuffer", "StateComponent"]


@attrs.frozen
class StateBuffer:
    """One buffer of a state component: items of ``item_len`` bytes, indexed by slot or page.

    Where the TP ranks share an item out, ``shape`` is this rank's part in elements (C order) and
    ``slice_dim`` the dimension that is cut. ``groups`` are the lengths of blocks within that dimension
    which are cut one by one, such as query, key and value of a gated delta net; none: it is one block.
    ``units`` says into how many units the TP ranks share it out where that is not one part per rank: KV
    heads of which there are fewer than ranks, or 1 if every rank holds all of it.
    ``item_stride`` is that of :class:`~pdcore.layout.kv.KVBuffer`.
    """

    name: str = attrs.field(validator=text)
    item_len: int = attrs.field(validator=integer)
    shape: tuple[int, ...] = attrs.field(default=(), validator=integers)
    slice_dim: int | None = attrs.field(default=None, validator=optional_integer)
    groups: tuple[int, ...] = attrs.field(default=(), validator=integers)
    item_stride: int = attrs.field(default=0, validator=integer, kw_only=True)
    units: int | None = attrs.field(default=None, validator=optional_integer, kw_only=True)

    def __attrs_post_init__(self) -> None:
        elements, dim = math.prod(self.shape), self.slice_dim
        cut = None if dim is None or not 0 <= dim < len(self.shape) else self.shape[dim]
        if (
            self.item_len < 1
            or self.stride < self.item_len
            or (self.units is not None and (self.units < 1 or (self.units > 1 and dim is None)))
            or elements < 1
            or self.item_len % elements
            or any(n < 1 for n in (*self.shape, *self.groups))
            or (dim is not None and cut is None)
            or (self.groups and sum(self.groups) != cut)
        ):
            raise LayoutError(
                f"the state buffer {self.name!r} contradicts itself",
                self.described,
                "use whole elements, lengths of at least 1, a slice_dim within the shape, "
                "groups that add up to that dimension, an item_stride of at least item_len (or 0), and units "
                "of more than 1 only with a slice_dim",
            )

    @property
    def described(self) -> str:
        """All but the name, for messages."""
        groups = f", groups {self.groups}" if self.groups else ""
        units = "" if self.units is None else f", {self.units} units"
        return f"{self.item_len} bytes, shape {self.shape}, slice_dim {self.slice_dim}{groups}{units}"

    @property
    def stride(self) -> int:
        """Bytes from the start of an item to that of the next."""
        return self.item_stride or self.item_len

    @property
    def split(self) -> bool:
        """Whether the TP ranks share it out."""
        return self.slice_dim is not None and self.units != 1

    def units_between(self, prefill: int, decode: int) -> int:
        """Return into how many units groups of these TP sizes share it out: 1 if every rank holds all of it,
        else as few as let each side hold whole ones."""
        if not self.split:
            return 1
        if self.units is None or not (self.units % prefill or self.units % decode):
            return math.lcm(prefill, decode)
        return self.units

    def joined(self, tp_size: int) -> StateBuffer:
        """Return the whole buffer, of which this is what one of ``tp_size`` ranks holds."""
        parts = 1
        if self.split:
            parts = tp_size if self.units is None else self.units // max(1, self.units // tp_size)
        shape = tuple(n * (parts if dim == self.slice_dim else 1) for dim, n in enumerate(self.shape))
        groups = tuple(n * parts for n in self.groups)
        return StateBuffer(self.name, self.item_len * parts, shape, self.slice_dim, groups, units=self.units)

    @property
    def outer(self) -> int:
        """How often the sliced dimension occurs in one item."""
        return 1 if self.slice_dim is None else math.prod(self.shape[: self.slice_dim])

    @property
    def blocks(self) -> tuple[int, ...]:
        """Bytes of each block of the sliced dimension, or of the item where none is sliced."""
        if self.slice_dim is None:
            return (self.item_len,)
        inner = self.item_len // math.prod(self.shape[: self.slice_dim + 1])
        return tuple(n * inner for n in self.groups or (self.shape[self.slice_dim],))


@attrs.frozen
class StateComponent:
    """Per-request state beside the KV pages, such as ``mamba``, ``swa`` or ``dsa``.

    ``num_items`` is the number of slots or pages that each buffer holds.
    """

    kind: str = attrs.field(validator=text)
    num_items: int = attrs.field(validator=integer)
    buffers: tuple[StateBuffer, ...] = attrs.field(validator=several(StateBuffer))

    def __attrs_post_init__(self) -> None:
        if self.buffers and self.num_items < 1:
            raise LayoutError(
                f"the state component {self.kind!r} has no items",
                f"num_items={self.num_items}",
                "use at least one slot or page",
            )
        if twice := repeated([b.name for b in self.buffers]):
            raise LayoutError(
                f"the state component {self.kind!r} names {', '.join(map(repr, twice))} twice",
                f"buffers {', '.join(b.name for b in self.buffers)}",
                "give each buffer its own name, over all pipeline stages",
            )

    @property
    def sharded(self) -> bool:
        """Whether the TP ranks share out a buffer of it."""
        return any(b.split for b in self.buffers)
