"""SGLang's lists of pointers as pdcore's layouts and regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sglang.srt.disaggregation.base.conn import KVArgs, StateType

from pdcore import Attention, KVBuffer, KVLayout, LayoutError, Region, StateBuffer, StateComponent, StatePool
from pdcore.layout.elements import ELEMENT_BITS, element_name
from pdcore_sglang.engine import Rank

__all__ = ["kv_pool", "state_pools"]

DTYPES = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2", "bf16": "bfloat16"}
"""SGLang's names of element types that torch calls otherwise."""


def kv_pool(args: KVArgs, rank: Rank) -> tuple[KVLayout, list[Region]]:
    """Return the layout of the KV cache, and the memory of its buffers.

    SGLang lists K of all layers, then V of all, or one latent per layer; then the same of a draft model.

    Raises:
        LayoutError: the list is none of these.
    """
    total, drafts = len(args.kv_data_ptrs), args.num_draft_entries
    pages = [length // item for length, item in zip(args.kv_data_lens, args.kv_item_lens, strict=True)]
    if not pages:
        raise LayoutError("SGLang has no KV buffers", "an empty list", "serve a model with attention layers")
    most = max(pages[: total - drafts] or pages)
    first = getattr(args, "prefill_start_layer", 0)  # decode has all layers, and no such attribute
    named = [*_parts(total - drafts, first, rank.latent), *_parts(drafts, rank.layers, rank.latent)]
    layers = args.kv_layer_ids or [layer for layer, _ in named]
    units = [None] * (total - drafts) + [rank.draft_kv_heads or None] * drafts
    buffers = tuple(
        KVBuffer(layer, part, item, units=count, num_pages=None if have == most else have)
        for layer, (_, part), item, count, have in zip(
            layers, named, args.kv_item_lens, units, pages, strict=True
        )
    )
    dtype = element_name(DTYPES.get(rank.dtype, rank.dtype))
    kind = Attention.LATENT if rank.latent else Attention.HEADS
    bits, prints = None if dtype in ELEMENT_BITS else 8, rank.fingerprint
    geometry = args.page_size, most, dtype, kind, rank.kv_heads, buffers
    layout = KVLayout(*geometry, element_bits=bits, fingerprint=prints)
    lengths = [have * item for have, item in zip(pages, args.kv_item_lens, strict=True)]
    regions = [
        Region(buffer.name, address, length, rank.device)
        for buffer, address, length in zip(buffers, args.kv_data_ptrs, lengths, strict=True)
    ]
    return layout, regions


def _parts(count: int, first: int, latent: bool) -> list[tuple[int, str]]:
    """Return the layer and the part of each of so many buffers."""
    if latent:
        return [(first + n, "latent") for n in range(count)]
    if count % 2:
        to_do = "serve with a KV pool that keeps K and V of each layer apart"
        raise LayoutError("SGLang's KV buffers are not a K and a V per layer", f"{count} buffers", to_do)
    half = count // 2
    return [(first + n % half, "k" if n < half else "v") for n in range(count)]


def state_pools(args: KVArgs, rank: Rank) -> tuple[StatePool, ...]:
    """Return the state beside the KV pages: a component per entry of SGLang's list, in its order.

    Raises:
        LayoutError: one is of a kind whose items pdcore cannot number.
    """
    pools, seen = [], Counter[str]()
    for n, state in enumerate(args.state_types):
        if state is StateType.DSA_TAIL:
            happened = "pdcore-sglang does not move the tail ring of a compressed DSA index"
            to_do = "serve the model without kpool compression, or over another transfer backend"
            raise LayoutError(happened, f"state type {state.value}", to_do)
        seen[state.value] += 1
        kind = state.value if seen[state.value] == 1 else f"{state.value}.{seen[state.value]}"
        pools.append(_state_pool(args, n, state, kind, rank))
    return tuple(pool for pool in pools if pool.component.buffers)


def _state_pool(args: KVArgs, n: int, state: StateType, kind: str, rank: Rank) -> StatePool:
    memory = zip(args.state_data_ptrs[n], args.state_data_lens[n], args.state_item_lens[n], strict=True)
    entries = [(i, *entry) for i, entry in enumerate(memory) if entry[2]]  # layers without have no bytes
    names = _names(args.state_layer_ids[n], len(args.state_item_lens[n]))
    buffers = tuple(_state_buffer(args, n, i, state, names[i], item, rank) for i, _, _, item in entries)
    items = entries[0][2] // entries[0][3] if entries else 0
    regions = tuple(
        Region(f"state.{kind}.{buffer.name}", address, length // item * item, rank.device)
        for buffer, (_, address, length, item) in zip(buffers, entries, strict=True)
    )
    return StatePool(StateComponent(kind, items, buffers), regions)


def _names(layers: Sequence[int], count: int) -> list[str]:
    """Return a name per buffer: its layer and how many of that came before, or its place alone."""
    if not layers:
        return [str(n) for n in range(count)]
    return [f"{layer}.{list(layers[:n]).count(layer)}" for n, layer in enumerate(layers)]


def _state_buffer(
    args: KVArgs, n: int, i: int, state: StateType, name: str, item: int, rank: Rank
) -> StateBuffer:
    tp = rank.topology.tp_size
    if state is StateType.MAMBA and args.state_dim_per_tensor[n]:
        cut = args.state_dim_per_tensor[n][i]
        if not cut:  # SGLang's mark of state that every rank holds whole
            return StateBuffer(name, item, units=1)
        outer = args.state_slice_outer_counts[n][i] if args.state_slice_outer_counts[n] else 1
        whole = args.state_conv_shard_groups[n][i] if args.state_conv_shard_groups[n] else None
        groups = tuple(length // tp for length in whole or ())  # SGLang has those of all ranks together
        return StateBuffer(name, item, (outer, cut, item // (outer * cut)), 1, groups)
    if rank.latent:
        return StateBuffer(name, item, units=1)
    heads = max(1, rank.kv_heads // tp)
    if state is StateType.SWA and args.swa_kv_cache_layout == "nhd" and not item % (args.page_size * heads):
        shape = (args.page_size, heads, item // (args.page_size * heads))
        return StateBuffer(name, item, shape, 1, units=rank.kv_heads)
    return StateBuffer(name, item)
