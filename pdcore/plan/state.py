"""The default way to copy a state component: whole items, or what the TP ranks cut out of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from pdcore.contract.backend import StateCopier, StatePlan, StateRequest
from pdcore.contract.regions import WriteBatch
from pdcore.errors import PlanError
from pdcore.layout.kv import Attention, StateBuffer
from pdcore.pairing.topology import Share, legal_tp, state_share
from pdcore.plan.batches import join
from pdcore.plan.indices import IndexArray
from pdcore.plan.items import ItemCopier
from pdcore.plan.pieces import PieceCopier, Pieces

__all__ = ["plan_state"]

SLOT_KINDS = ("mamba",)
"""A request of these kinds has one slot."""

PAGE_KINDS = ("swa", "dsa")
"""A request of these kinds has a list of pages, which every TP rank holds whole if attention is latent."""


def plan_state(request: StateRequest) -> StatePlan:
    """Plan a component's copies for any pair of TP sizes, or say why they cannot be copied.

    Between equal TP sizes items are copied whole. Between others, every buffer must say how it is sliced,
    or that every rank holds all of it (``units=1``); ``swa`` and ``dsa`` beside a latent KV cache need not,
    since every TP rank holds them whole. Both sides must describe a buffer alike. The rules are SGLang's.
    The copier raises a :class:`~pdcore.errors.PlanError` that names the component: index lists that differ
    in number, or more or less than one slot of ``mamba``.
    """
    local, remote, kind = request.local, request.remote, request.local.kind
    groups = request.local_topology, request.remote_topology
    there = {b.name: n for n, b in enumerate(remote.buffers)}
    if refusal := _refusal(request, there):
        return StatePlan(refusal=refusal)
    what = f"state {kind!r}"
    items = local.num_items, remote.num_items
    wholes: list[tuple[int, int, int]] = []
    cuts: list[tuple[Pieces, int, int]] = []
    for ours, region in zip(local.buffers, request.local_regions, strict=True):
        theirs, target = remote.buffers[there[ours.name]], request.remote_regions[there[ours.name]]
        share = state_share(*groups, ours.units_between(*(g.tp_size for g in groups)))
        if share is None:
            continue
        if not share.whole:
            cuts.append((_slices(share, ours, theirs), region, target))
        elif ours.stride == theirs.stride == ours.item_len:
            wholes.append((ours.item_len, region, target))
        else:
            cuts.append((Pieces.whole(ours.item_len, ours.stride, theirs.stride), region, target))
    copiers: list[StateCopier] = []
    if wholes:
        lens, here, targets = zip(*wholes, strict=True)
        copiers.append(ItemCopier(what, lens, here, targets, *items))
    if cuts:
        pieces, here, targets = zip(*cuts, strict=True)
        copiers.append(PieceCopier(what, pieces, here, targets, *items))
    if not copiers:
        return StatePlan(_nothing)
    copier = copiers[0] if len(copiers) == 1 else partial(_all, copiers)
    return StatePlan(partial(_one_slot, what, copier) if kind in SLOT_KINDS else copier)


def _refusal(request: StateRequest, there: Mapping[str, int]) -> str:
    """Return why two components cannot be copied; empty: they can."""
    local, remote, kind = request.local, request.remote, request.local.kind
    if kind != remote.kind:
        return f"state kind {kind!r} here, {remote.kind!r} there"
    same_stage = request.local_topology.pp_size == request.remote_topology.pp_size
    ours = {b.name for b in local.buffers}
    if not (ours == set(there) if same_stage else ours <= set(there)):
        names = f"{', '.join(sorted(ours)) or 'none'} here, {', '.join(sorted(there)) or 'none'} there"
        return f"state {kind!r} has buffers {names}"
    paired = [(b, remote.buffers[there[b.name]]) for b in local.buffers]
    sizes = request.local_topology.tp_size, request.remote_topology.tp_size
    replicated = kind in PAGE_KINDS and request.attention is Attention.LATENT
    why = _misfit_of_items(paired) if sizes[0] == sizes[1] else _misfit_of_slices(paired, *sizes, replicated)
    return f"state {kind!r} {why}" if why else ""


def _misfit_of_items(paired: Sequence[tuple[StateBuffer, StateBuffer]]) -> str:
    here, there = (tuple(pair[side].item_len for pair in paired) for side in (0, 1))
    if here != there:
        return f"has item lengths {here} here, {there} there"
    other = next(((a, b) for a, b in paired if a.described != b.described), None)
    return "" if other is None else _another(other[0].name, *other)


def _misfit_of_slices(
    paired: Sequence[tuple[StateBuffer, StateBuffer]], here: int, there: int, replicated: bool
) -> str:
    for ours, theirs in paired:
        alike = ours.units == theirs.units and (ours.slice_dim is None) == (theirs.slice_dim is None)
        if alike and ours.units is None and ours.slice_dim is None and not replicated:
            return f"does not say how TP ranks slice {ours.name!r}, so tp_size {here} cannot feed {there}"
        if not alike:
            return _another(ours.name, ours, theirs)
        if ours.units is not None and not legal_tp((here, there), ours.units):
            return (
                f"has {ours.units} units of {ours.name!r}, which tp_size {here} and {there} cannot share out"
            )
        whole, other = ours.joined(here), theirs.joined(there)
        if whole != other:
            return _another(ours.name, whole, other)
    return ""


def _another(name: str, ours: StateBuffer, theirs: StateBuffer) -> str:
    return f"has another {name!r}: {ours.described} here, {theirs.described} there"


def _all(copiers: Sequence[StateCopier], local: IndexArray, remote: IndexArray) -> WriteBatch:
    return join([copy(local, remote) for copy in copiers])


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
