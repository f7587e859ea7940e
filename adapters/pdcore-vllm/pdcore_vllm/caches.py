"""vLLM's KV caches as pdcore's layout and pools.

vLLM hands in one tensor per layer, logically ``(blocks, heads, tokens, content)``, content being K and V of
one head of one token side by side (or MLA's latent); how it lies in memory, its strides tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs
import numpy as np
import numpy.typing as npt

from pdcore import Attention, KVBuffer, KVLayout, LayoutError, PageOrder, Pools
from pdcore.layout.fingerprint import Fingerprint

if TYPE_CHECKING:
    import torch

__all__ = ["Cache", "layer_of"]

MadeBy = Fingerprint | dict[str, str]


@attrs.frozen
class Cache:
    """The pools of a rank. A block of vLLM's scheduler is ``ratio`` pages where its kernels split blocks."""

    pools: Pools
    ratio: int

    @classmethod
    def of(
        cls, tensors: Mapping[str, torch.Tensor], blocks: int, size: int, heads: int, made_by: MadeBy
    ) -> Cache:
        """Return the pools of vLLM's tensors, by the names of their layers, of ``blocks`` of ``size`` tokens.

        ``heads`` counts the KV heads over all TP ranks, 0 for MLA. Layers that share a tensor are one.
        ``made_by`` is the fingerprint.

        Raises:
            LayoutError: a tensor is not as described above, or they differ in more than what a head holds.
        """
        # of layers that share memory, the first one counts
        layers = {t.data_ptr(): (layer_of(name), t) for name, t in reversed(list(tensors.items()))}
        chosen = dict(sorted(layers.values(), key=lambda one: one[0]))
        kinds = {(*t.shape[:3], t.dtype, _order(layer, t)) for layer, t in chosen.items()}
        if len(chosen) != len(layers) or len(kinds) != 1:
            raise _unknown(f"{len(layers)} tensors of {len(chosen)} layers: {', '.join(map(str, kinds))}")
        pages, _, page_size, dtype, order = kinds.pop()
        if pages % blocks or page_size * (pages // blocks) != size:
            raise _unknown(f"{pages} pages of {page_size} tokens for {blocks} blocks of {size}")
        part, attention = ("kv", Attention.HEADS) if heads else ("latent", Attention.LATENT)
        buffers = tuple(KVBuffer(n, part, t[0].numel() * t.element_size()) for n, t in chosen.items())
        lie = {"order": order} if heads else {}
        layout = KVLayout(page_size, pages, dtype, attention, heads, buffers, fingerprint=made_by, **lie)
        turned = order is PageOrder.TOKEN_HEAD_KV
        memory = [t.transpose(1, 2) if turned else t for t in chosen.values()]
        return cls(Pools(layout, memory), pages // blocks)

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


def _order(layer: int, tensor: torch.Tensor) -> PageOrder:
    """Return the order of a tensor's pages: which of its two views is a page without gaps."""
    if tensor.ndim == 4 and tensor[0].is_contiguous():
        return PageOrder.HEAD_TOKEN_KV
    if tensor.ndim == 4 and tensor[0].transpose(0, 1).is_contiguous():
        return PageOrder.TOKEN_HEAD_KV
    raise _unknown(f"layer {layer} of shape {tuple(tensor.shape)} and strides {tensor.stride()}")


def _unknown(there_is: str) -> LayoutError:
    return LayoutError(
        "these KV caches of vLLM are of a kind that pdcore-vllm does not know",
        there_is,
        "use a model with one kind of attention, and VLLM_KV_CACHE_LAYOUT LBHNC or LBNHC (or their BL forms)",
    )
