"""The cache shapes of real models, as their published configurations give them: KV and other state.

KV is bfloat16. ``gemma-3-4b`` keeps the last 1,024 tokens of its local layers (5 of 6) as ``swa`` pages.
``jamba-v0.1`` has a Mamba mixer in all but each eighth layer: intermediate size 8,192, a convolution of 4,
state size 16. ``qwen3-next-80b`` has gated delta nets in 3 of 4 layers: 16 key and 32 value heads of 128.
``deepseek-v3.2`` adds an index key of 128 float8 and a float32 scale per token (``dsa``). Temporal states
are float32, the inputs that the convolutions remember bfloat16, as SGLang keeps them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable

import attrs

from pdcore.errors import PDCoreError
from pdcore.layout.kv import KVLayout, StateBuffer, StateComponent
from pdcore.pairing.topology import Topology

__all__ = ["MODELS", "ModelShape", "ShapeError", "StateShape", "Tensor", "held_of"]

ALL_TOKENS = sys.maxsize
WHOLE = Topology()


class ShapeError(PDCoreError):
    """A model cannot be dealt out to so many ranks."""


def held_of(units: int, rank: Topology) -> range:
    """Return which of ``units`` equal parts a TP rank holds; of fewer parts than ranks, each holds one."""
    if rank.tp_size > units:
        first = rank.tp_rank * units // rank.tp_size
        return range(first, first + 1)
    held = units // rank.tp_size
    return range(rank.tp_rank * held, (rank.tp_rank + 1) * held)


@attrs.frozen
class Tensor:
    """What a layer keeps, over all TP ranks: per token, or per request; sizes in elements.

    ``axes`` name the dimensions of ``shape``. TP cuts ``slice_dim`` (None: each rank has it whole), and
    within it each of the blocks ``groups``.
    """

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    itemsize: int = 2
    slice_dim: int | None = 0
    groups: tuple[int, ...] = ()

    def cuts(self, rank: Topology) -> tuple[range, ...]:
        """Return what a rank holds of each block of ``slice_dim``, in the block's own numbers."""
        assert self.slice_dim is not None
        return tuple(held_of(block, rank) for block in self.groups or (self.shape[self.slice_dim],))

    def held_by(self, rank: Topology) -> Tensor:
        """Return the part that a TP rank holds, as a tensor of its own."""
        if self.slice_dim is None:
            return self
        lengths = tuple(len(cut) for cut in self.cuts(rank))
        shape = (*self.shape[: self.slice_dim], sum(lengths), *self.shape[self.slice_dim + 1 :])
        return attrs.evolve(self, shape=shape, groups=lengths if self.groups else ())

    def per_page(self, page_size: int) -> Tensor:
        """Return the tensor of a page of tokens, of which this one is a token's."""
        dim = None if self.slice_dim is None else self.slice_dim + 1
        return attrs.evolve(self, axes=("token", *self.axes), shape=(page_size, *self.shape), slice_dim=dim)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.itemsize


@attrs.frozen
class StateShape:
    """A state component of some layers: one slot per request, or the pages of its last ``window`` tokens."""

    kind: str
    layers: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    window: int = 0

    def items(self, pages: int, page_size: int) -> int:
        """Return how many slots or pages a request of ``pages`` KV pages holds."""
        return min(pages, -(-self.window // page_size) + 1) if self.window else 1

    def pool(self, num_pages: int, slots: int, page_size: int) -> int:
        """Return how many items serve ``slots`` requests whose KV takes ``num_pages`` pages together."""
        return min(num_pages, slots * self.items(num_pages, page_size)) if self.window else slots

    def item(self, tensor: Tensor, page_size: int) -> Tensor:
        """Return the whole item of a tensor: itself for a slot, or a page of it."""
        return tensor.per_page(page_size) if self.window else tensor


@attrs.frozen
class ModelShape:
    """What a model caches: heads (MHA, GQA, MQA) or a latent (MLA), and maybe further state.

    ``kv_layers`` are those with a KV cache, absolute ids; empty: all.
    """

    name: str
    layers: int
    kv_heads: int = 0
    head_dim: int = 0
    latent_dim: int = 0
    kv_layers: tuple[int, ...] = ()
    state: tuple[StateShape, ...] = ()

    @property
    def kv(self) -> tuple[Tensor, ...]:
        """What a KV layer keeps per token, in the order of the layout's parts."""
        if self.latent_dim:
            return (Tensor("latent", ("dimension",), (self.latent_dim,), slice_dim=None),)
        shape = self.kv_heads, self.head_dim
        return tuple(Tensor(part, ("head", "dimension"), shape) for part in ("k", "v"))

    def stage(self, layers: Iterable[int], rank: Topology) -> list[int]:
        """Return those of the layers that the pipeline stage of a rank has: neighbours, as even as can be."""
        first, end = (n * self.layers // rank.pp_size for n in (rank.pp_rank, rank.pp_rank + 1))
        return [layer for layer in layers if first <= layer < end]

    def layout(self, page_size: int, num_pages: int, rank: Topology = WHOLE) -> KVLayout:
        """Return the KV layout of a rank, by default of one that holds the whole model.

        ``page_size`` is in tokens.

        Raises:
            ShapeError: the rank's pipeline stage has no KV layer.
        """
        every = self.kv_layers or range(self.layers)
        layers = self.stage(every, rank)
        if not layers:
            raise ShapeError(
                f"pipeline stage {rank.pp_rank} of {self.name} has no KV cache",
                f"pp_size {rank.pp_size}, {self.layers} layers, of which {len(every)} have one",
                "use a smaller pp_size",
            )
        if self.latent_dim:
            return KVLayout.latent(
                layers=layers, latent_dim=self.latent_dim, page_size=page_size, num_pages=num_pages
            )
        return KVLayout.heads(
            layers=layers,
            kv_heads=len(held_of(self.kv_heads, rank)),
            head_dim=self.head_dim,
            page_size=page_size,
            num_pages=num_pages,
            total_kv_heads=self.kv_heads,
        )

    def components(
        self, page_size: int, num_pages: int, slots: int, rank: Topology
    ) -> tuple[StateComponent, ...]:
        """Return the state components of a rank, for ``slots`` requests at a time."""
        out = []
        for state in self.state:
            parts = [state.item(tensor, page_size).held_by(rank) for tensor in state.tensors]
            buffers = tuple(
                StateBuffer(f"layer.{layer}.{p.name}", p.nbytes, p.shape, p.slice_dim, p.groups)
                for layer in self.stage(state.layers, rank)
                for p in parts
            )
            out.append(StateComponent(state.kind, state.pool(num_pages, slots, page_size), buffers))
        return tuple(out)

    def page_bytes(self, page_size: int, rank: Topology) -> int:
        """Return what a page takes on a rank at most: KV, and state that is kept in pages."""
        kv = self.layout(page_size, 1, rank).page_bytes
        return kv + sum(self._state_bytes(s, page_size, rank) for s in self.state if s.window)

    def slot_bytes(self, page_size: int, rank: Topology) -> int:
        """Return what a request takes on a rank, however long it is."""
        return sum(self._state_bytes(s, page_size, rank) for s in self.state if not s.window)

    def _state_bytes(self, state: StateShape, page_size: int, rank: Topology) -> int:
        layers = len(self.stage(state.layers, rank))
        return layers * sum(state.item(t, page_size).held_by(rank).nbytes for t in state.tensors)


def _split(layers: int, period: int, offset: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the layers at ``offset`` of each ``period``, and the others."""
    chosen = tuple(range(offset, layers, period))
    return chosen, tuple(layer for layer in range(layers) if layer not in chosen)


def _gemma_3_4b() -> ModelShape:
    attention, local = _split(34, 6, 5)
    parts = tuple(Tensor(part, ("head", "dimension"), (4, 256)) for part in ("k", "v"))
    window = StateShape("swa", local, parts, window=1024)
    return ModelShape("gemma-3-4b", 34, kv_heads=4, head_dim=256, kv_layers=attention, state=(window,))


def _jamba() -> ModelShape:
    attention, mixers = _split(32, 8, 4)
    conv = Tensor("conv", ("channel", "tap"), (8192, 3))
    temporal = Tensor("temporal", ("channel", "state"), (8192, 16), itemsize=4)
    mamba = StateShape("mamba", mixers, (conv, temporal))
    return ModelShape("jamba-v0.1", 32, kv_heads=8, head_dim=128, kv_layers=attention, state=(mamba,))


def _qwen3_next() -> ModelShape:
    attention, linear = _split(48, 4, 3)
    groups = (16 * 128, 16 * 128, 32 * 128)  # query, key, value
    conv = Tensor("conv", ("channel", "tap"), (sum(groups), 3), groups=groups)
    temporal = Tensor("temporal", ("head", "key", "value"), (32, 128, 128), itemsize=4)
    mamba = StateShape("mamba", linear, (conv, temporal))
    return ModelShape("qwen3-next-80b", 48, kv_heads=2, head_dim=256, kv_layers=attention, state=(mamba,))


def _deepseek_v3_2() -> ModelShape:
    index = Tensor("index", ("byte",), (128 + 4,), itemsize=1, slice_dim=None)
    sparse = StateShape("dsa", tuple(range(61)), (index,), window=ALL_TOKENS)
    return ModelShape("deepseek-v3.2", 61, latent_dim=512 + 64, state=(sparse,))


MODELS = {
    shape.name: shape
    for shape in (
        ModelShape("deepseek-v2-lite", layers=27, latent_dim=512 + 64),
        ModelShape("deepseek-v3", layers=61, latent_dim=512 + 64),
        _deepseek_v3_2(),
        ModelShape("gemma-2b", layers=18, kv_heads=1, head_dim=256),
        _gemma_3_4b(),
        ModelShape("gpt2", layers=12, kv_heads=12, head_dim=64),
        _jamba(),
        ModelShape("llama-3-8b", layers=32, kv_heads=8, head_dim=128),
        ModelShape("llama-3-70b", layers=80, kv_heads=8, head_dim=128),
        ModelShape("mistral-7b", layers=32, kv_heads=8, head_dim=128),
        ModelShape("qwen2.5-0.5b", layers=24, kv_heads=2, head_dim=64),
        ModelShape("qwen2.5-7b", layers=28, kv_heads=4, head_dim=128),
        ModelShape("qwen2.5-72b", layers=80, kv_heads=8, head_dim=128),
        _qwen3_next(),
    )
}
"""Every model that ``pdcore demo --model`` knows, by name."""
