"""The default way to copy a state component: whole items, or what the TP ranks cut out of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from pdcore.backend import StateCopier, StatePlan, StateRequest
from pdcore.errors import PlanError
from pdcore.layout import Attention, StateBuffer
from pdcore.plan.indices import IndexArray
from pdcore.plan.items import ItemCopier
from pdcore.plan.pieces import PieceCopier, Pieces
from pdcore.regions import WriteBatch
from pdcore.topology import Share, state_share

__all__ = ["plan_state"]

SLOT_KINDS = ("mamba",)
"""A request of these kinds has one slot."""

PAGE_KINDS = ("swa", "dsa")
"""A request of these kinds has a list of pages, which every TP rank holds whole if attention is latent."""


def plan_state(request: StateRequest) -> StatePlan:
    """Plan a component's copies for any pair of TP sizes, or say why they cannot be copied.

    Between equal TP sizes items are copied whole. Between others, every buffer must say how it is sliced;
    ``swa`` and ``dsa`` beside a latent KV cache need not, since every TP rank holds them whole. The rules
    are SGLang's. The copier raises a :class:`~pdcore.errors.PlanError` that names the component: index
    lists that differ in number, or more or less than one slot of ``mamba``.
    """
    local, remote, kind = request.local, request.remote, request.local.kind
    if kind != remote.kind:
        return StatePlan(refusal=f"state kind {kind!r} here, {remote.kind!r} there")
    there = {b.name: n for n, b in enumerate(remote.buffers)}
    same_stage = request.local_topology.pp_size == request.remote_topology.pp_size
    ours = {b.name for b in local.buffers}
    if not (ours == set(there) if same_stage else ours <= set(there)):
        names = f"{', '.join(sorted(ours)) or 'none'} here, {', '.join(sorted(there)) or 'none'} there"
        return StatePlan(refusal=f"state {kind!r} has buffers {names}")
    sizes = request.local_topology.tp_size, request.remote_topology.tp_size
    paired = [(b, remote.buffers[there[b.name]]) for b in local.buffers]
    replicated = kind in PAGE_KINDS and request.attention is Attention.LATENT
    sliced = sizes[0] != sizes[1] and (remote.sharded or not replicated)
    refusal = _misfit_of_slices(paired, *sizes) if sliced else _misfit_of_items(paired)
    if refusal:
        return StatePlan(refusal=f"state {kind!r} {refusal}")
    share = state_share(request.local_topology, request.remote_topology, sharded=sliced)
    if share is None:
        return StatePlan(_nothing)
    what = f"state {kind!r}"
    regions = request.local_regions, [request.remote_regions[there[b.name]] for b in local.buffers]
    items = local.num_items, remote.num_items
    copier: StateCopier
    if share.whole and all(a.stride == b.stride == a.item_len for a, b in paired):
        copier = ItemCopier(what, [b.item_len for b in local.buffers], *regions, *items)
    elif share.whole:
        pieces = [Pieces.whole(a.item_len, a.stride, b.stride) for a, b in paired]
        copier = PieceCopier(what, pieces, *regions, *items)
    else:
        copier = PieceCopier(what, [_slices(share, *pair) for pair in paired], *regions, *items)
    return StatePlan(partial(_one_slot, what, copier) if kind in SLOT_KINDS else copier)


def _misfit_of_items(paired: Sequence[tuple[StateBuffer, StateBuffer]]) -> str:
    here, there = (tuple(pair[side].item_len for pair in paired) for side in (0, 1))
    return "" if here == there else f"has item lengths {here} here, {there} there"


def _misfit_of_slices(paired: Sequence[tuple[StateBuffer, StateBuffer]], here: int, there: int) -> str:
    for ours, theirs in paired:
        if ours.slice_dim is None or theirs.slice_dim is None:
            return f"does not say how TP ranks slice {ours.name!r}, so tp_size {here} cannot feed {there}"
        whole, other = ours.joined(here), theirs.joined(there)
        if whole != other:
            return f"has another {ours.name!r}: {whole.described} here, {other.described} there"
    return ""


def _slices(share: Share, ours: StateBuffer, theirs: StateBuffer) -> Pieces:
    """Return the pieces of one item: one per outer index and block."""
    blocks, others = np.array(ours.blocks, np.int64), np.array(theirs.blocks, np.int64)
    unit = blocks // share.prefill_count
    rows = np.arange(ours.outer).reshape(-1, 1)
    here = rows * blocks.sum() + (blocks.cumsum() - blocks) + unit * share.prefill_first
    there = rows * others.sum() + (others.cumsum() - others) + unit * share.decode_first
    lengths = np.tile(unit * share.count, ours.outer)
    offsets = (a.ravel().astype(np.uint64) for a in (here, there, lengths))
    return Pieces(ours.stride, theirs.stride, *offsets)


def _one_slot(what: str, copy: StateCopier, local: IndexArray, remote: IndexArray) -> WriteBatch:
    if len(local) != 1 or len(remote) != 1:
        raise PlanError(
            f"{what} needs exactly one slot on each side",
            f"{len(local)} slots from prefill, {len(remote)} from decode",
            "hand in the one slot index of the request",
        )
    return copy(local, remote)


def _nothing(local: IndexArray, remote: IndexArray) -> WriteBatch:
    """Copy nothing: another prefill rank sends this component."""
    return WriteBatch.empty()
