"""What is where in memory: KV pages and per-request state. Pure descriptions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from enum import Enum

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.errors import LayoutError

__all__ = ["Attention", "KVBuffer", "KVLayout", "StateBuffer", "StateComponent", "repeated"]

DTYPE_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "uint8": 1,
    "int8": 1,
}
"""KV element types by their torch name, with their size in bytes."""


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


class Attention(Enum):
    """How a layer's cache is shared out: by KV heads (MHA, GQA, MQA) or as one latent (MLA)."""

    HEADS = "heads"
    LATENT = "latent"


@attrs.frozen
class KVBuffer:
    """One per-layer KV buffer: ``num_pages`` items of ``item_len`` bytes, one per page.

    ``layer`` is the model's absolute layer id; ``part`` is ``"k"``, ``"v"`` or ``"latent"``.
    """

    layer: int
    part: str
    item_len: int

    @property
    def name(self) -> str:
        """The region name: ``layer.3.k``."""
        return f"layer.{self.layer}.{self.part}"


@attrs.frozen
class KVLayout:
    """The KV cache of one rank: page geometry and the buffers, one region each.

    ``page_size`` is in tokens, ``total_kv_heads`` counts over all TP ranks (0 for latent).
    """

    page_size: int
    num_pages: int
    dtype: str
    attention: Attention
    total_kv_heads: int
    buffers: tuple[KVBuffer, ...]

    def __attrs_post_init__(self) -> None:
        names = [b.name for b in self.buffers]
        wrong = [
            *(f"{k}={v}" for k, v in (("page_size", self.page_size), ("num_pages", self.num_pages)) if v < 1),
            *([] if self.dtype in DTYPE_BYTES else [f"dtype={self.dtype!r}"]),
            *(f"{b.name}.item_len={b.item_len}" for b in self.buffers if b.item_len < 1),
            *(f"{n} twice" for n in repeated(names)),
            *([] if self.buffers else ["no buffers"]),
            *([f"total_kv_heads={self.total_kv_heads}"] if self.units < 1 else []),
        ]
        if wrong:
            raise LayoutError(
                "the KV layout contradicts itself",
                ", ".join(wrong),
                f"use sizes of at least 1, distinct buffers, and a dtype of {', '.join(DTYPE_BYTES)}",
            )

    @classmethod
    def heads(
        cls,
        *,
        layers: Sequence[int],
        kv_heads: int,
        head_dim: int,
        page_size: int,
        num_pages: int,
        dtype: str = "bfloat16",
        total_kv_heads: int | None = None,
    ) -> KVLayout:
        """Return the layout of MHA, GQA or MQA: a K and a V buffer per layer, K first.

        ``kv_heads`` are this rank's heads; an item is ``page_size * kv_heads * head_dim`` elements.
        """
        item = page_size * kv_heads * head_dim * DTYPE_BYTES.get(dtype, 0)
        buffers = tuple(KVBuffer(layer, part, item) for part in ("k", "v") for layer in layers)
        return cls(page_size, num_pages, dtype, Attention.HEADS, total_kv_heads or kv_heads, buffers)

    @classmethod
    def latent(
        cls,
        *,
        layers: Sequence[int],
        latent_dim: int,
        page_size: int,
        num_pages: int,
        dtype: str = "bfloat16",
    ) -> KVLayout:
        """Return the layout of MLA: one latent buffer per layer, the same on every TP rank.

        ``latent_dim`` counts the elements per token (compressed KV plus rope part).
        """
        item = page_size * latent_dim * DTYPE_BYTES.get(dtype, 0)
        buffers = tuple(KVBuffer(layer, "latent", item) for layer in layers)
        return cls(page_size, num_pages, dtype, Attention.LATENT, 0, buffers)

    @property
    def units(self) -> int:
        """Into how many units the TP ranks share out each layer: its KV heads, or the one latent."""
        return self.total_kv_heads if self.attention is Attention.HEADS else 1

    @property
    def item_lens(self) -> npt.NDArray[np.uint64]:
        """Bytes per page of each buffer, shape ``(len(buffers),)``."""
        return np.array([b.item_len for b in self.buffers], dtype=np.uint64)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all buffers."""
        return sum(b.item_len for b in self.buffers)


@attrs.frozen
class StateBuffer:
    """One buffer of a state component: items of ``item_len`` bytes, indexed by slot or page.

    Where the TP ranks share an item out, ``shape`` is this rank's part in elements (C order) and
    ``slice_dim`` the dimension that is cut. ``groups`` are the lengths of blocks within that dimension
    which are cut one by one, such as query, key and value of a gated delta net; none: it is one block.
    """

    name: str
    item_len: int
    shape: tuple[int, ...] = ()
    slice_dim: int | None = None
    groups: tuple[int, ...] = ()

    def __attrs_post_init__(self) -> None:
        elements, dim = math.prod(self.shape), self.slice_dim
        cut = None if dim is None or not 0 <= dim < len(self.shape) else self.shape[dim]
        if (
            self.item_len < 1
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
                "and groups that add up to that dimension",
            )

    @property
    def described(self) -> str:
        """All but the name, for messages."""
        groups = f", groups {self.groups}" if self.groups else ""
        return f"{self.item_len} bytes, shape {self.shape}, slice_dim {self.slice_dim}{groups}"

    def joined(self, tp_size: int) -> StateBuffer:
        """Return the whole buffer, of which this is what one of ``tp_size`` ranks holds."""
        shape = tuple(n * (tp_size if dim == self.slice_dim else 1) for dim, n in enumerate(self.shape))
        groups = tuple(n * tp_size for n in self.groups)
        return StateBuffer(self.name, self.item_len * tp_size, shape, self.slice_dim, groups)

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

    kind: str
    num_items: int
    buffers: tuple[StateBuffer, ...]

    def __attrs_post_init__(self) -> None:
        if twice := repeated([b.name for b in self.buffers]):
            raise LayoutError(
                f"the state component {self.kind!r} names {', '.join(map(repr, twice))} twice",
                f"buffers {', '.join(b.name for b in self.buffers)}",
                "give each buffer its own name, over all pipeline stages",
            )

    @property
    def sharded(self) -> bool:
        """Whether the TP ranks share out a buffer of it."""
        return any(b.slice_dim is not None for b in self.buffers)
