"""What NIXL is told of both sides' memory: once, as lists of items; else entry by entry."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pd_nixl.library import Agent, Handle, Numbers
from pdcore.contract.regions import RegionInfo, WriteBatch
from pdcore.model import DeviceKind

__all__ = ["MEMORY", "Side", "requests"]

MEMORY = {DeviceKind.CPU: "DRAM", DeviceKind.CUDA: "VRAM"}
MOST_ITEMS = 2**31 - 1
"""NIXL numbers the items of a list by int32."""

Integers = npt.NDArray[np.int64]


class Side:
    """Where the regions of one side lie, and a prepared list per kind of memory.

    A list holds the items (pages, slots, rows) of all regions of its kind, in the order of the regions.
    Arrays by region: ``kinds`` (whether it is of that kind), ``rows`` (address, item length, device,
    stride, items), ``items`` and ``strides`` (bytes of an item, and to the next) and ``firsts``, the number
    of its first item in the list.
    """

    def __init__(
        self, agent: Agent, name: str, addresses: Sequence[int], regions: Sequence[RegionInfo]
    ) -> None:
        kinds = [region.device.kind for region in regions]
        self.kinds = {kind: np.array([one is kind for one in kinds]) for kind in kinds}
        self.items = np.array([region.item_len or region.length for region in regions], np.int64)
        self.strides = np.array([region.stride for region in regions], np.int64)
        counts = np.array([region.items for region in regions], np.int64)
        devices = [region.device.index for region in regions]
        self.rows = np.array([addresses, self.items, devices, self.strides, counts], np.uint64).T.copy()
        self.firsts = np.zeros_like(counts)
        self.lists: dict[DeviceKind, Handle] = {}
        for kind, members in self.kinds.items():
            ends = counts[members].cumsum()
            self.firsts[members] = ends - counts[members]
            if ends[-1] <= MOST_ITEMS:
                self.lists[kind] = agent.prep_xfer_dlist(name, self.rows[members], MEMORY[kind])

    def numbers(self, regions: Integers, offsets: Integers, counts: Integers) -> Numbers:
        """Return the numbers of the ``counts`` items that begin at each entry's offset."""
        starts = self.firsts[regions] + offsets // self.strides[regions]
        ends = counts.cumsum()
        numbers: Integers = (starts - ends + counts).repeat(counts) + np.arange(ends[-1])
        return numbers.astype(np.int32)


def requests(agent: Agent, name: str, ours: Side, theirs: Side, batch: WriteBatch) -> Iterator[Handle]:
    """Make the requests that write a batch to the agent ``name``, one per pair of memory kinds."""
    for mine, other in itertools.product(ours.kinds, theirs.kinds):
        chosen = ours.kinds[mine][batch.local_regions] & theirs.kinds[other][batch.remote_regions]
        if chosen.any():
            yield _request(agent, name, ours, theirs, (mine, other), batch.of_pairs(chosen))


def _request(
    agent: Agent, name: str, ours: Side, theirs: Side, kinds: tuple[DeviceKind, DeviceKind], batch: WriteBatch
) -> Handle:
    """Make one request: of item numbers, whose neighbours NIXL merges, or else of descriptors."""
    sizes = batch.starts[1:] - batch.starts[:-1]
    here, there = batch.local_regions.repeat(sizes), batch.remote_regions.repeat(sizes)
    offsets = [array.view(np.int64) for array in (batch.local_offsets, batch.remote_offsets)]
    items, lengths = ours.items[here], batch.lengths.view(np.int64)
    steps, others = ours.strides[here], theirs.strides[there]
    odd = (items != theirs.items[there]) | (offsets[0] % steps) | (offsets[1] % others) | (lengths % items)
    odd |= (lengths != items) & ((steps != items) | (others != items))
    local, remote = ours.lists.get(kinds[0]), theirs.lists.get(kinds[1])
    if local and remote and not odd.any():
        sources = ours.numbers(here, offsets[0], lengths // items)
        targets = theirs.numbers(there, offsets[1], lengths // items)
        return agent.make_prepped_xfer("WRITE", local, sources, remote, targets)
    source, target, _ = batch.absolute(ours.rows[:, 0], theirs.rows[:, 0])
    descriptors = (
        np.stack((addresses, batch.lengths, side.rows[regions, 2]), axis=1)
        for addresses, side, regions in ((source, ours, here), (target, theirs, there))
    )
    both = [agent.get_xfer_descs(d, MEMORY[kind]) for d, kind in zip(descriptors, kinds, strict=True)]
    return agent.initialize_xfer("WRITE", both[0], both[1], name)
