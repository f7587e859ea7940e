"""Which ring of prefill a pair packs in, and who is told that there is none."""

from __future__ import annotations

import attrs
import pytest
from wire_samples import DESCRIPTION

from pdcore.contract.engine import EngineCapabilities
from pdcore.errors import EngineError
from pdcore.layout.kv import KVLayout
from pdcore.layout.staging import StagingLayout
from pdcore.memory.pools import Pools
from pdcore.memory.staging import StagingMemory
from pdcore.model import CPU, PeerIdentity, Role
from pdcore.pairing.topology import Topology
from pdcore.prefill.rings import OwnRings
from pdcore.protocol.actions import Connect
from pdcore.wire import Route

AUTO, ALWAYS = StagingLayout(2, 3, 4096), StagingLayout(2, 3, 4096, always=True)
LAYOUT = KVLayout.heads(layers=range(1), kv_heads=2, head_dim=8, page_size=2, num_pages=4)
OURS = attrs.evolve(DESCRIPTION, role=Role.PREFILL, layout=LAYOUT, state=(), topology=Topology())
THERE = attrs.evolve(OURS, role=Role.DECODE, staging=AUTO)
IDENTITY = PeerIdentity(Role.DECODE, THERE.incarnation, THERE.address)

DEAR = EngineCapabilities(entry_cost=45e-6)


def rings(mine: StagingLayout = AUTO) -> OwnRings:
    return OwnRings(StagingMemory.allocate(mine, Pools.allocate(LAYOUT), CPU), OURS, DEAR)


def asked(ring: int | None = 1, there: StagingLayout | None = AUTO) -> Connect:
    return Connect(Route(b"decode"), IDENTITY, attrs.evolve(THERE, staging=there), ring)


def test_a_pair_has_a_ring_that_no_other_uses_and_the_one_that_decode_lends() -> None:
    slots = rings().slots_for(asked(1), [0])
    assert slots is not None
    assert (slots.ring, slots.lent) == (1, 1)


@pytest.mark.parametrize(
    ("do", "used"), [(asked(None), []), (asked(0, None), []), (asked(0), [0, 1])], ids=["lent", "any", "own"]
)
def test_without_a_ring_on_either_side_bytes_go_as_they_lie(do: Connect, used: list[int]) -> None:
    assert rings().slots_for(do, used) is None


@pytest.mark.parametrize("mine", [True, False])
def test_what_may_only_go_packed_does_not_go_another_way(mine: bool) -> None:
    own, there = (ALWAYS, AUTO) if mine else (AUTO, ALWAYS)
    with pytest.raises(EngineError) as caught:
        rings(own).slots_for(asked(None, there), [])
    assert caught.value.there_is == "it has lent none: all of its own are lent or in doubt"
    assert caught.value.to_do.startswith("raise transfer.staging_rings on decode")
    with pytest.raises(EngineError) as caught:
        rings(own).slots_for(asked(0, there), [0, 1])
    assert caught.value.there_is == "all 2 are used by decode workers that are paired or leaving"
    assert caught.value.to_do.startswith("raise transfer.staging_rings on prefill")


@pytest.mark.parametrize("ring", [-1, 2, 2**62])
def test_a_ring_that_decode_does_not_have_is_refused(ring: int) -> None:
    with pytest.raises(EngineError, match=f"ring {ring} of 2"):
        rings().slots_for(asked(ring), [])
