"""vLLM's KV caches as pdcore's layout and pools.

vLLM hands in one tensor per layer, logically ``(blocks, heads, tokens, content)``, content being K and V of
one head of one token side by side (or MLA's latent); how it lies in memory, its strides tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs
import numpy as np
import numpy.typing as npt

from pdcore import Attention, KVBuffer, KVLayout, LayoutError, PageOrder, Pools

__all__ = ["Cache", "Tensor", "layer_of"]


class Tensor(Protocol):
    """The part of ``torch.Tensor`` that is looked at here."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> object: ...
    def stride(self) -> Sequence[int]: ...
    def permute(self, *dims: int) -> Tensor: ...
    def data_ptr(self) -> int: ...
    def element_size(self) -> int: ...


@attrs.frozen
class Cache:
    """The pools of a rank. A block of vLLM's scheduler is ``ratio`` pages where its kernels split blocks."""

    pools: Pools
    ratio: int

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, Tensor],
        *,
        blocks: int,
        block_size: int,
        kv_heads: int,
        latent: bool,
        fingerprint: Mapping[str, str],
    ) -> Cache:
        """Return the pools of vLLM's tensors, by the names of their layers.

        ``kv_heads`` counts over all TP ranks. Layers that share a tensor are one.

        Raises:
            LayoutError: a tensor is not as described above, or they differ in more than what a head holds.
        """
        layers = {
            tensor.data_ptr(): (layer_of(name), tensor) for name, tensor in reversed(list(tensors.items()))
        }
        chosen = dict(sorted(layers.values(), key=lambda one: one[0]))
        if len(chosen) != len(layers) or not chosen:
            raise _unknown(f"{len(layers)} tensors of {len(chosen)} layers: {', '.join(tensors)}")
        shapes = {(*tensor.shape[:3], tensor.dtype) for tensor in chosen.values()}
        orders = {_order(layer, tensor) for layer, tensor in chosen.items()}
        if len(shapes) > 1 or len(orders) > 1:
            raise _unknown(
                f"(blocks, heads, tokens, type) {shapes}, orders {[str(order) for order in orders]}"
            )
        first, order = next(iter(chosen.values())), orders.pop()
        pages, page_size = int(first.shape[0]), int(first.shape[2])
        if pages % blocks or page_size * (pages // blocks) != block_size:
            raise _unknown(f"{pages} pages of {page_size} tokens for {blocks} blocks of {block_size}")
        layout = KVLayout(
            page_size,
            pages,
            first.dtype,
            Attention.LATENT if latent else Attention.HEADS,
            0 if latent else kv_heads,
            tuple(
                KVBuffer(layer, "latent" if latent else "kv", _page_bytes(tensor))
                for layer, tensor in chosen.items()
            ),
            order=PageOrder.TOKEN_HEAD if latent else order,
            fingerprint=fingerprint,
        )
        lying = [t.permute(0, 2, 1, 3) if order is PageOrder.TOKEN_HEAD_KV else t for t in chosen.values()]
        return cls(Pools(layout, lying), pages // blocks)

    def pages(self, blocks: tuple[int, ...]) -> npt.NDArray[np.int64]:
        """Return the pages of some blocks, in their order: int64 of shape (len(blocks) * ratio,)."""
        first = np.asarray(blocks, np.int64)[:, None] * self.ratio
        return (first + np.arange(self.ratio)).reshape(-1)


def layer_of(name: str) -> int:
    """Return the number of a layer of vLLM's name, such as ``model.layers.3.self_attn.attn``.

    Raises:
        LayoutError: it has none, or several.
    """
    numbers = [int(part) for part in name.split(".") if part.isdecimal()]
    if len(numbers) != 1:
        raise _unknown(f"a layer named {name!r}")
    return numbers[0]


def _order(layer: int, tensor: Tensor) -> PageOrder:
    """Return the order of a tensor's pages, the outermost dimension first."""
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    if len(shape) == 4:
        _, heads, tokens, content = shape
        inner = {
            PageOrder.HEAD_TOKEN_KV: (tokens * content, content, 1),
            PageOrder.TOKEN_HEAD_KV: (content, heads * content, 1),
        }
        for order, wanted in inner.items():
            told = zip(shape[1:], strides[1:], wanted, strict=True)
            if all(extent == 1 or stride == want for extent, stride, want in told):
                return order
    raise _unknown(f"layer {layer} of shape {shape} and strides {strides}")


def _page_bytes(tensor: Tensor) -> int:
    _, heads, tokens, content = tensor.shape
    return int(heads * tokens * content * tensor.element_size())


def _unknown(there_is: str) -> LayoutError:
    return LayoutError(
        "these KV caches of vLLM are of a kind that pdcore-vllm does not know",
        there_is,
        "use a model with one kind of attention, and VLLM_KV_CACHE_LAYOUT LBHNC or LBNHC (or their BL forms)",
    )
