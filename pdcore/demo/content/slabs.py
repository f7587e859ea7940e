"""Which words of a model's cache lie where on a rank: from a byte of a buffer to what it means."""

from __future__ import annotations

import math

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.demo.content.models import ModelShape, ShapeError, Tensor
from pdcore.pairing.topology import Topology

__all__ = ["Cut", "Slab", "kv_slabs", "state_slabs"]

WORD = 8


@attrs.frozen(eq=False)
class Cut:
    """The 64-bit words of a whole item that one TP rank holds, in its order: int64, shape (words,).

    ``item`` is what all TP ranks hold together.
    """

    item: Tensor
    words: npt.NDArray[np.int64]

    @classmethod
    def of(cls, item: Tensor, rank: Topology) -> Cut:
        """Return the cut of a rank.

        Raises:
            ShapeError: a piece of it is not a multiple of 8 bytes.
        """
        if item.slice_dim is None:
            rows, pieces, row = 1, [(0, item.nbytes)], item.nbytes
        else:
            inner = math.prod(item.shape[item.slice_dim + 1 :]) * item.itemsize
            rows, row = math.prod(item.shape[: item.slice_dim]), item.shape[item.slice_dim] * inner
            lengths = item.groups or (item.shape[item.slice_dim],)
            starts = np.cumsum((0, *lengths)).tolist()
            held = zip(starts, item.cuts(rank), strict=False)
            pieces = [((start + cut.start) * inner, len(cut) * inner) for start, cut in held]
        if any(n % WORD for piece in pieces for n in (*piece, row)):
            raise ShapeError(
                f"{item.name!r} of shape {item.shape} cannot be cut for the demo",
                f"tp_size {rank.tp_size} gives pieces of {', '.join(str(n) for _, n in pieces)} bytes",
                "use a TP size (or a --page-size) that leaves multiples of 8 bytes",
            )
        within = np.concatenate([np.arange(first, first + n, WORD) for first, n in pieces]) // WORD
        words = np.arange(rows)[:, None] * (row // WORD) + within
        return cls(item, words.ravel().astype(np.int64))

    @property
    def whole(self) -> int:
        """Words of the whole item."""
        return self.item.nbytes // WORD

    def place(self, number: int, offset: int) -> str:
        """Return what byte ``offset`` of a rank's item means; the item is the request's ``number``-th."""
        at = int(self.words[offset // WORD]) * WORD + offset % WORD
        index = [int(n) for n in np.unravel_index(at // self.item.itemsize, self.item.shape)]
        if self.item.axes[0] == "token":
            index[0] += number * self.item.shape[0]
        return ", ".join(f"{axis} {n}" for axis, n in zip(self.item.axes, index, strict=True))


@attrs.frozen(eq=False)
class Slab:
    """One buffer of a rank: its name, which is the same on every rank, in words, and what it holds."""

    name: str
    title: str
    cut: Cut


def kv_slabs(model: ModelShape, page_size: int, rank: Topology) -> tuple[Slab, ...]:
    """Return the KV buffers of a rank, in the order of its layout."""
    cuts = {tensor.name: Cut.of(tensor.per_page(page_size), rank) for tensor in model.kv}
    return tuple(
        Slab(b.name, f"layer {b.layer} {b.part}", cuts[b.part])
        for b in model.layout(page_size, 1, rank).buffers
    )


def state_slabs(model: ModelShape, page_size: int, rank: Topology) -> tuple[tuple[Slab, ...], ...]:
    """Return the buffers of each state component of a rank, in the component's order."""
    out = []
    for state in model.state:
        cuts = [Cut.of(state.item(tensor, page_size), rank) for tensor in state.tensors]
        out.append(
            tuple(
                Slab(
                    f"state.{state.kind}.layer.{layer}.{cut.item.name}",
                    f"layer {layer} {state.kind} {cut.item.name}",
                    cut,
                )
                for layer in model.stage(state.layers, rank)
                for cut in cuts
            )
        )
    return tuple(out)
