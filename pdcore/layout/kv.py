"""What is where in memory, and what it means: KV pages. Pure descriptions; state has its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.checks.fields import (
    as_integer,
    as_layers,
    as_member,
    integer,
    member,
    optional_integer,
    several,
    text,
)
from pdcore.checks.names import repeated
from pdcore.errors import LayoutError
from pdcore.layout.elements import ELEMENT_BITS, bytes_of, element_name
from pdcore.layout.fingerprint import Fingerprint, to_fingerprint
from pdcore.layout.page_order import PageOrder
from pdcore.layout.state import StateBuffer, StateComponent

__all__ = ["Attention", "KVBuffer", "KVLayout", "PageOrder", "StateBuffer", "StateComponent"]


class Attention(Enum):
    """How a layer's cache is shared out: by KV heads (MHA, GQA, MQA) or as one latent (MLA)."""

    HEADS = "heads"
    LATENT = "latent"


@attrs.frozen
class KVBuffer:
    """One per-layer KV buffer: items of ``item_len`` bytes, one per page.

    ``layer`` is the model's absolute layer id; ``part`` is ``"k"``, ``"v"``, ``"kv"`` (both fused),
    ``"latent"``, or another name, such as ``"k_scale"``. ``order`` is that of its pages, if it is not its
    layout's. ``units`` says how the TP ranks share it out, where the layout doesn't: the KV heads of its
    layer over all ranks, or 1 if every rank holds all of it. Where there are more ranks than units,
    neighbouring ranks hold the same unit. ``item_stride`` is the bytes from a page to the next where they
    are no neighbours, else 0; :class:`~pdcore.memory.pools.Pools` sets it from the memory that it is given.
    ``num_pages`` is that of its layout, unless it says another: of draft layers, for instance.
    """

    layer: int = attrs.field(validator=integer)
    part: str = attrs.field(validator=text)
    item_len: int = attrs.field(validator=integer)
    order: PageOrder | None = attrs.field(default=None, kw_only=True)
    units: int | None = attrs.field(default=None, validator=optional_integer, kw_only=True)
    item_stride: int = attrs.field(default=0, validator=integer, kw_only=True)
    num_pages: int | None = attrs.field(default=None, validator=optional_integer, kw_only=True)

    @property
    def name(self) -> str:
        """The region name: ``layer.3.k``."""
        return f"layer.{self.layer}.{self.part}"

    @property
    def stride(self) -> int:
        """Bytes from the start of a page to that of the next."""
        return self.item_stride or self.item_len

    def contradictions(self, order: PageOrder) -> list[str]:
        """Return what is wrong with it, given the order of its pages."""
        if order not in PageOrder.__members__.values():
            return [f"{self.name}.order={order!r}"]
        apart = {"k": True, "v": True, "kv": False}.get(self.part)
        return [
            *([f"layer={self.layer}"] if self.layer < 0 else []),
            *([f"{self.name}.item_len={self.item_len}"] if self.item_len < 1 else []),
            *([f"{self.name}.units={self.units}"] if self.units is not None and self.units < 1 else []),
            *(
                [f"{self.name}.num_pages={pages}"]
                if (pages := self.num_pages) is not None and pages < 1
                else []
            ),
            *([f"{self.name}.item_stride={self.item_stride}"] if self.stride < self.item_len else []),
            *([f"{self.name} of order {order}"] if apart is not None and apart is order.fused else []),
        ]


@attrs.frozen
class KVLayout:
    """The KV cache of one rank: page geometry and the buffers, one region each.

    ``page_size`` is in tokens, ``num_pages`` are those of the buffers that say none, ``total_kv_heads``
    counts over all TP ranks (0 for latent). ``order`` is that of the pages of all buffers that name none.
    ``dtype`` is a torch or numpy dtype, or its torch name; of a type that pdcore does not know,
    ``element_bits`` says the bits of one value. ``fingerprint`` (or a mapping) says what made the cache; two
    that differ don't pair.
    """

    page_size: int = attrs.field(validator=integer)
    num_pages: int = attrs.field(validator=integer)
    dtype: str = attrs.field(converter=element_name)
    attention: Attention = attrs.field(validator=member(Attention))
    total_kv_heads: int = attrs.field(validator=integer)
    buffers: tuple[KVBuffer, ...] = attrs.field(validator=several(KVBuffer))
    order: PageOrder = attrs.field(default=PageOrder.TOKEN_HEAD, validator=member(PageOrder), kw_only=True)
    element_bits: int | None = attrs.field(default=None, validator=optional_integer, kw_only=True)
    fingerprint: Fingerprint | None = attrs.field(default=None, converter=to_fingerprint, kw_only=True)

    def __attrs_post_init__(self) -> None:
        names = [b.name for b in self.buffers]
        known, told = ELEMENT_BITS.get(self.dtype), self.element_bits
        sized = known or told is not None
        wrong = [
            *(f"{k}={v}" for k, v in (("page_size", self.page_size), ("num_pages", self.num_pages)) if v < 1),
            *([] if self.dtype and sized else [f"dtype={self.dtype!r}"]),
            *([f"element_bits={told}"] if told is not None and (told < 1 or told != (known or told)) else []),
            *(wrong for b in self.buffers for wrong in b.contradictions(b.order or self.order)),
            *(f"{n} twice" for n in repeated(names)),
            *([] if self.buffers else ["no buffers"]),
            *([f"total_kv_heads={self.total_kv_heads}"] if self.default_units < 1 else []),
        ]
        if wrong:
            raise LayoutError(
                "the KV layout contradicts itself",
                ", ".join(wrong),
                "use sizes of at least 1, distinct buffers, an order with kv for fused buffers alone, and a "
                f"dtype of {', '.join(ELEMENT_BITS)}, or any name with its element_bits",
            )

    @classmethod
    def heads(
        cls,
        *,
        layers: Sequence[int],
        kv_heads: int,
        head_dim: int,
        v_head_dim: int | None = None,
        page_size: int,
        num_pages: int,
        dtype: object = "bfloat16",
        total_kv_heads: int | None = None,
        order: PageOrder = PageOrder.TOKEN_HEAD,
        element_bits: int | None = None,
        fingerprint: Fingerprint | Mapping[str, str] | None = None,
    ) -> KVLayout:
        """Return the layout of MHA, GQA or MQA: a K and a V buffer per layer, K first; or, where
        ``order`` has K and V fused, one ``kv`` buffer per layer.

        ``kv_heads`` are this rank's heads; an item is ``page_size * kv_heads * head_dim`` values, of V
        ``v_head_dim`` where it has another, and of both if they are fused.

        Raises:
            LayoutError: it contradicts itself, or K and V are fused so that they must be of one width.
        """
        order = as_member("order", PageOrder, order)
        dims = {"k": head_dim, "v": head_dim if v_head_dim is None else v_head_dim}
        if order.fused and order.dims[-1] != "kv" and dims["k"] != dims["v"]:
            raise LayoutError(
                f"K and V of different widths cannot be fused in the order {order}",
                f"head_dim {dims['k']}, v_head_dim {dims['v']}",
                "use an order that ends with kv, where they lie side by side, or keep K and V apart",
            )
        sizes = {part: _head_bytes(dim, dtype, element_bits) for part, dim in dims.items()}
        heads = {"kv": sizes["k"] + sizes["v"]} if order.fused else sizes
        heads_of_a_page = as_integer("page_size", page_size) * as_integer("kv_heads", kv_heads)
        ids = as_layers(layers)
        buffers = tuple(
            KVBuffer(layer, part, heads_of_a_page * size) for part, size in heads.items() for layer in ids
        )
        total = kv_heads if total_kv_heads is None else total_kv_heads
        return cls(
            page_size, num_pages, dtype, Attention.HEADS, total, buffers,
            order=order, element_bits=element_bits, fingerprint=fingerprint,
        )  # fmt: skip

    @classmethod
    def latent(
        cls,
        *,
        layers: Sequence[int],
        latent_dim: int,
        page_size: int,
        num_pages: int,
        dtype: object = "bfloat16",
        element_bits: int | None = None,
        fingerprint: Fingerprint | Mapping[str, str] | None = None,
    ) -> KVLayout:
        """Return the layout of MLA: one latent buffer per layer, the same on every TP rank.

        ``latent_dim`` counts the values per token (compressed KV plus rope part).
        """
        item = as_integer("page_size", page_size) * _head_bytes(latent_dim, dtype, element_bits)
        buffers = tuple(KVBuffer(layer, "latent", item) for layer in as_layers(layers))
        return cls(
            page_size, num_pages, dtype, Attention.LATENT, 0, buffers,
            element_bits=element_bits, fingerprint=fingerprint,
        )  # fmt: skip

    def beside(self, other: KVLayout) -> KVLayout:
        """Return this layout with the buffers of ``other`` after its own: of layers with other heads, of
        another order, or with another number of pages. Every buffer then says its order and units itself,
        and its pages where they are not as many as this layout's.

        Raises:
            LayoutError: they differ in more than their buffers, or have a buffer in common.
        """
        differing = [
            f"{name} {a!r} and {b!r}"
            for name in ("page_size", "dtype", "element_bits", "fingerprint")
            if (a := getattr(self, name)) != (b := getattr(other, name))
        ]
        if differing:
            raise LayoutError(
                "two KV layouts do not fit beside each other",
                ", ".join(differing),
                "give both the same page_size, dtype and fingerprint",
            )
        buffers = (
            attrs.evolve(
                b,
                order=layout.order_of(b),
                units=layout.units_of(b),
                num_pages=None if (pages := layout.pages_of(b)) == self.num_pages else pages,
            )
            for layout in (self, other)
            for b in layout.buffers
        )
        most = max(self.total_kv_heads, other.total_kv_heads)
        attention = Attention.HEADS if most else Attention.LATENT
        return attrs.evolve(self, attention=attention, total_kv_heads=most, buffers=tuple(buffers))

    @property
    def default_units(self) -> int:
        """Into how many units the TP ranks share out a buffer that does not say: its KV heads, or the
        one latent."""
        return self.total_kv_heads if self.attention is Attention.HEADS else 1

    @property
    def units(self) -> tuple[int, ...]:
        """The different numbers of units that its buffers have, rising."""
        return tuple(sorted({self.units_of(b) for b in self.buffers}))

    def units_of(self, buffer: KVBuffer) -> int:
        """Return into how many units the TP ranks share out a buffer."""
        return self.default_units if buffer.units is None else buffer.units

    def pages_of(self, buffer: KVBuffer) -> int:
        """Return how many pages a buffer has."""
        return self.num_pages if buffer.num_pages is None else buffer.num_pages

    @property
    def smallest(self) -> KVBuffer:
        """The buffer with the fewest pages: a request has only pages that lie in all of them."""
        return min(self.buffers, key=self.pages_of)

    def order_of(self, buffer: KVBuffer) -> PageOrder:
        """Return the order of a buffer's pages."""
        return buffer.order or self.order

    def rows_of(self, buffer: KVBuffer) -> int:
        """Return how often a page of a buffer lists its heads: :meth:`~pdcore.layout.PageOrder.rows`."""
        return self.order_of(buffer).rows(self.page_size)

    @property
    def value_bits(self) -> int:
        """Bits of one value."""
        return self.element_bits or ELEMENT_BITS[self.dtype]

    @property
    def item_lens(self) -> npt.NDArray[np.uint64]:
        """Bytes per page of each buffer, shape ``(len(buffers),)``."""
        return np.array([b.item_len for b in self.buffers], dtype=np.uint64)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all buffers."""
        return sum(b.item_len for b in self.buffers)


def _head_bytes(values: int, dtype: object, element_bits: int | None) -> int:
    """Return the bytes of one head of one token; those of 8 bits for an unknown type, which the layout
    refuses."""
    name = element_name(dtype)
    bits = ELEMENT_BITS.get(name, 8) if element_bits is None else as_integer("element_bits", element_bits)
    if (size := bytes_of(as_integer("head_dim (or latent_dim)", values), bits)) is None:
        raise LayoutError(
            "a head of one token ends within a byte",
            f"{values} values of {bits} bits ({name})",
            "use a head_dim (or latent_dim) that fills whole bytes",
        )
    return size
