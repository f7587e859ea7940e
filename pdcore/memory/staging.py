"""The staging rings of one rank: whether it has any, of what size, and their memory."""

from __future__ import annotations

import attrs

from pdcore.config.records import Config
from pdcore.contract.capabilities import EngineCapabilities
from pdcore.contract.regions import Region
from pdcore.errors import ConfigError, ConfigProblem
from pdcore.layout.staging import RING, StagingLayout
from pdcore.memory.aux_rows import device_memory, host_memory
from pdcore.memory.packing import Packable, memory_to_pack
from pdcore.memory.pools import Pools
from pdcore.model import CPU, Device, DeviceKind

__all__ = ["StagingMemory", "staging_memory"]

SLOTS, SLOT_BYTES = 8, 4 * 2**20
"""Of a ring: a slot is large enough that an engine moves it as fast as anything, and small enough to stay in
the caches; some are under way while others are packed and taken out."""
DEAR = 1e-6
"""Seconds that an entry costs an engine at least, for packing to be worth a thought."""


@attrs.frozen(eq=False)
class StagingMemory:
    """``region`` is registered behind those of the pools; ``pools`` are the bytes of these, by region."""

    layout: StagingLayout
    region: Region
    pools: tuple[Packable, ...]
    _bytes: Packable

    @classmethod
    def allocate(cls, layout: StagingLayout, pools: Pools, device: Device) -> StagingMemory:
        """Return slots on the device on which some pools lie; the host's are handed out as they are touched.

        Raises:
            LayoutError: there is no such memory.
        """
        items = layout.rings * layout.slots
        if device == CPU:
            region = Region.of(RING, host_memory(RING, items, layout.slot_bytes))
        else:
            region = Region.of(RING, device_memory(RING, items, layout.slot_bytes, device))
        region = attrs.evolve(region, item_len=layout.slot_bytes)
        return cls(layout, region, tuple(memory_to_pack(pools.regions)), memory_to_pack([region])[0])

    def slot(self, ring: int, slot: int, nbytes: int) -> Packable:
        """Return the first bytes of a slot."""
        return self._bytes.part(self.layout.offset(ring, slot), nbytes)


def staging_memory(config: Config, engine: EngineCapabilities, pools: Pools) -> StagingMemory | None:
    """Return the rings of a rank, if it is to have any.

    Raises:
        ConfigError: bytes shall always go packed, and the pools lie not on one device that pdcore copies on.
    """
    wanted = config.transfer.staging
    devices = {region.device for region in pools.regions}
    device = next(iter(devices), CPU)
    # A device's memory is for the model: who wants a part of it for this says so.
    worth_it = engine.entry_cost >= DEAR and devices <= {CPU}
    if wanted == "off" or (wanted == "auto" and not worth_it):
        return None
    if len(devices) > 1 or device.kind not in (DeviceKind.CPU, DeviceKind.CUDA):
        names = ", ".join(sorted(map(str, devices)))
        reason = f"'always' needs pools on one CPU or CUDA device, aux rows among them; they lie on {names}"
        raise ConfigError([ConfigProblem("transfer.staging", "configuration", reason)])
    layout = StagingLayout(config.transfer.staging_rings, SLOTS, SLOT_BYTES, wanted == "always")
    return StagingMemory.allocate(layout, pools, device)
