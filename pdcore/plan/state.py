"""The default way to copy a state component: whole items between equal buffers."""

from __future__ import annotations

from pdcore.backend import StatePlan, StateRequest
from pdcore.plan.items import ItemCopier

__all__ = ["plan_state"]


def plan_state(request: StateRequest) -> StatePlan:
    """Copy whole items, for components of one kind with equal item lengths; else say why not."""
    local, remote = request.local, request.remote
    lens = tuple(b.item_len for b in local.buffers)
    if local.kind != remote.kind:
        return StatePlan(refusal=f"state kind {local.kind!r} here, {remote.kind!r} there")
    if lens != tuple(b.item_len for b in remote.buffers):
        there = tuple(b.item_len for b in remote.buffers)
        return StatePlan(refusal=f"state {local.kind!r} has item lengths {lens} here, {there} there")
    copier = ItemCopier(
        f"state {local.kind!r}",
        lens,
        request.local_regions,
        request.remote_regions,
        local.num_items,
        remote.num_items,
    )
    return StatePlan(copier)
