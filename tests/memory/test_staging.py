"""Who has staging rings, where they lie, and what the configuration refuses."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest

from pdcore import Config, ConfigError, KVLayout, Pools, StateBuffer, StateComponent, TransferConfig
from pdcore.config.sources import load_config
from pdcore.contract.capabilities import EngineCapabilities
from pdcore.layout.aux_form import AuxForm
from pdcore.layout.aux_schema import AuxField, AuxSchema
from pdcore.layout.staging import RING, StagingLayout
from pdcore.memory.packing import HostBytes
from pdcore.memory.region_table import RegionTable
from pdcore.memory.staging import StagingMemory, staging_memory
from pdcore.model import Device, DeviceKind

LAYOUT = KVLayout.heads(layers=range(2), kv_heads=1, head_dim=8, page_size=2, num_pages=8)
STATE = StateComponent("mamba", 8, (StateBuffer("conv", 64), StateBuffer("ssm", 32)))
AUX = AuxForm.rows(AuxSchema((AuxField("first_token", "int64"),)))
FREE, CHEAP, DEAR = (EngineCapabilities(entry_cost=cost) for cost in (0.0, 0.9e-6, 45e-6))
SLOTS, SLOT_BYTES = 8, 4 * 2**20


def with_staging(mode: str, rings: int = 3) -> Config:
    return load_config(code={"transfer": {"staging": mode, "staging_rings": rings}}, environ={}).config


def pools(*devices: Device) -> Pools:
    """Pools of which the regions say that they lie on some devices; their memory is the host's."""
    here = Pools.allocate(LAYOUT)
    if not devices:
        return here
    places = [devices[number % len(devices)] for number in range(len(here.kv))]
    regions = [attrs.evolve(r, device=place) for r, place in zip(here.kv, places, strict=True)]
    return Pools(LAYOUT, regions)


# --- who has them ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "engine", "has"),
    [
        ("off", DEAR, False),
        ("auto", DEAR, True),
        ("auto", CHEAP, False),
        ("auto", FREE, False),
        ("always", FREE, True),
        ("always", DEAR, True),
    ],
)
def test_who_has_rings(mode: str, engine: EngineCapabilities, has: bool) -> None:
    memory = staging_memory(with_staging(mode), engine, pools())
    assert (memory is not None) is has
    if memory is not None:
        assert memory.layout == StagingLayout(3, SLOTS, SLOT_BYTES, mode == "always")


@pytest.mark.parametrize(
    ("devices", "there"),
    [
        ((Device(DeviceKind.CUDA, 0), Device(DeviceKind.CUDA, 1)), "cuda:0, cuda:1"),
        ((Device(DeviceKind.CPU), Device(DeviceKind.CUDA)), "cpu, cuda:0"),
        ((Device(DeviceKind.NPU),), "npu:0"),
    ],
)
def test_pools_that_lie_elsewhere_have_none_and_cannot_be_packed_always(
    devices: tuple[Device, ...], there: str
) -> None:
    elsewhere = pools(*devices)
    assert staging_memory(with_staging("auto"), DEAR, elsewhere) is None
    with pytest.raises(ConfigError) as caught:
        staging_memory(with_staging("always"), DEAR, elsewhere)
    (problem,) = caught.value.problems
    assert problem.path == "transfer.staging"
    assert problem.reason == (
        f"'always' needs pools on one CPU or CUDA device, aux rows among them; they lie on {there}"
    )


# --- where they lie ----------------------------------------------------------------------------


def allocated(rings: int = 3) -> StagingMemory:
    memory = staging_memory(with_staging("always", rings), FREE, pools())
    assert memory is not None
    return memory


def test_the_rings_are_one_region_whose_items_are_the_slots() -> None:
    region = allocated().region
    assert region.name == RING == "staging.ring"
    assert region.item_len == SLOT_BYTES
    assert region.length == 3 * SLOTS * SLOT_BYTES
    assert region.info.items == 3 * SLOTS


def test_slots_lie_one_behind_the_other_and_nowhere_else() -> None:
    memory = allocated(2)
    slot = memory.slot(1, 2, 5)
    assert isinstance(slot, HostBytes)
    slot.array[:] = 9
    (memory_of,) = (HostBytes.of(memory.region).array,)
    begins = (1 * SLOTS + 2) * SLOT_BYTES
    assert np.flatnonzero(memory_of).tolist() == list(range(begins, begins + 5))


def test_the_bytes_of_the_pools_are_there_by_region() -> None:
    there = pools()
    memory = staging_memory(with_staging("always"), FREE, there)
    assert memory is not None
    for number, array in enumerate(there.arrays):
        array[:] = number + 1
        (seen,) = {int(byte) for byte in np.unique(_bytes(memory, number))}
        assert seen == number + 1
    assert len(memory.pools) == len(there.regions)


def _bytes(memory: StagingMemory, region: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    bytes_ = memory.pools[region]
    assert isinstance(bytes_, HostBytes)
    return bytes_.array


def test_the_region_comes_behind_all_others_in_the_table() -> None:
    staging = StagingLayout(2, 4, 8192)
    without, behind = (RegionTable.of(LAYOUT, [STATE], AUX, 6, rings) for rings in (None, staging))
    assert behind.expected[:-1] == without.expected
    assert (behind.kv, behind.state, behind.aux) == (without.kv, without.state, without.aux)
    last = behind.expected[-1]
    assert (last.name, last.length, last.item_len, last.item_stride) == (RING, 2 * 4 * 8192, 8192, 0)


def test_what_is_registered_is_what_the_table_expects() -> None:
    memory, there = allocated(), pools()
    table = RegionTable.of(there.layout, (), None, 0, memory.layout)
    assert table.differing([*there.regions, memory.region]) == []
    assert len(table.differing(there.regions)) == 1
    other = RegionTable.of(there.layout, (), None, 0, StagingLayout(4, SLOTS, SLOT_BYTES))
    assert len(other.differing([*there.regions, memory.region])) == 1


def test_no_buffer_can_have_the_name_of_the_region() -> None:
    expected = RegionTable.of(LAYOUT, [STATE], AUX, 6).expected
    assert RING not in {one.name for one in expected}
    assert {one.name.partition(".")[0] for one in expected} == {"layer", "state", "aux"}


# --- what the configuration refuses ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("staging", "sometimes", "must be one of 'auto', 'off', 'always', is 'sometimes'"),
        ("staging", True, "must be one of 'auto', 'off', 'always', is True"),
        ("staging_rings", 0, "must lie in 1..4096, is 0"),
        ("staging_rings", 4097, "must lie in 1..4096, is 4097"),
    ],
)
def test_what_cannot_be_is_refused_by_name(name: str, value: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(code={"transfer": {name: value}}, environ={})
    (problem,) = caught.value.problems
    assert (problem.path, problem.reason) == (f"transfer.{name}", reason)
    with pytest.raises(ConfigError) as caught:
        TransferConfig(**{name: value})
    (problem,) = caught.value.problems
    assert problem.path == name
    assert problem.reason.startswith(reason.rpartition(", is ")[0])


def test_bytes_go_packed_where_that_is_faster_unless_something_else_is_said() -> None:
    assert (TransferConfig().staging, TransferConfig().staging_rings) == ("auto", 8)
