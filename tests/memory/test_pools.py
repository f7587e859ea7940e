from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt
import pytest
import torch

from pdcore.contract.regions import Region
from pdcore.errors import LayoutError, PlanError, RoomError
from pdcore.layout.aux_form import AuxForm
from pdcore.layout.aux_schema import AuxField, AuxSchema
from pdcore.layout.kv import KVLayout, PageOrder, StateBuffer, StateComponent
from pdcore.memory.metadata_buffers import MetadataBuffers
from pdcore.memory.pools import Pools, StatePool
from pdcore.memory.region_table import ExpectedMemory, RegionTable
from pdcore.model import RoomId
from pdcore.plan import IndexArray

LAYOUT = KVLayout.heads(layers=[3, 4], kv_heads=2, head_dim=4, page_size=8, num_pages=10)
MAMBA = StateComponent("mamba", 4, (StateBuffer("conv", 6), StateBuffer("ssm", 10)))
SWA = StateComponent("swa", 7, (StateBuffer("window", 32),))
SCHEMA = AuxSchema((AuxField("token", "int64"),))
ROOM = RoomId(5)


@pytest.fixture
def pools() -> Pools:
    return Pools.allocate(LAYOUT, state=[MAMBA, SWA], aux=MetadataBuffers(SCHEMA, 3))


def i64(*values: int) -> IndexArray:
    return np.array(values, np.int64)


def memory(name: str, size: int) -> Region:
    return Region.of(name, np.zeros(size, np.uint8))


def test_regions_are_kv_then_state_then_aux(pools: Pools) -> None:
    item = 8 * 2 * 4 * 2
    assert [(r.name, r.length) for r in pools.regions] == [
        ("layer.3.k", item * 10),
        ("layer.4.k", item * 10),
        ("layer.3.v", item * 10),
        ("layer.4.v", item * 10),
        ("state.mamba.conv", 24),
        ("state.mamba.ssm", 40),
        ("state.swa.window", 224),
        ("aux", 3 * 128),
    ]
    assert pools.kv == pools.regions[:4]
    assert pools.table.expected == tuple(
        ExpectedMemory(r.name, r.length, r.item_len, r.item_stride) for r in pools.regions
    )
    assert all(r.item_stride == 0 for r in pools.regions)
    assert [pool.regions for pool in pools.state] == [pools.regions[4:6], pools.regions[6:7]]
    assert (pools.table.kv, pools.table.state, pools.table.aux) == ((0, 1, 2, 3), ((4, 5), (6,)), (7,))


def test_a_peers_table_follows_from_its_descriptions(pools: Pools) -> None:
    assert RegionTable.of(LAYOUT, [MAMBA, SWA], AuxForm.rows(SCHEMA), 3) == pools.table


def test_without_aux_the_table_has_no_place_for_it() -> None:
    table = Pools.allocate(LAYOUT).table
    assert (table.kv, table.state, table.aux) == ((0, 1, 2, 3), (), ())


def test_allocated_memory_is_shaped_by_page(pools: Pools) -> None:
    assert [(a.shape, a.dtype) for a in pools.arrays] == [((10, 128), np.dtype(np.uint8))] * 4
    pools.arrays[2][9, 0] = 7
    owner = pools.kv[2].owner
    assert isinstance(owner, np.ndarray)
    assert owner[9, 0] == 7


@pytest.mark.parametrize(
    ("sizes", "there_is"),
    [
        ([1280, 1280, 1281, 1280], "('layer.3.v', 1281) instead of ('layer.3.v', 1280)"),
        ([1280, 1280, 1280], "3 regions instead of 4; (name, bytes): nothing instead of ('layer.4.v', 1280)"),
        ([1280] * 5, "5 regions instead of 4; (name, bytes): ('more', 1280) instead of nothing"),
    ],
)
def test_pools_that_are_not_what_the_layout_says_are_refused(sizes: list[int], there_is: str) -> None:
    names = [*(b.name for b in LAYOUT.buffers), "more"]
    with pytest.raises(LayoutError) as caught:
        Pools(LAYOUT, [memory(name, size) for name, size in zip(names, sizes, strict=False)])
    assert caught.value.happened == "the pools are not what their layouts say"
    assert there_is in caught.value.there_is
    assert caught.value.to_do.startswith("hand in one region per buffer, in the layout's order")


def test_pools_in_another_order_are_refused() -> None:
    regions = [memory(b.name, 1280) for b in reversed(LAYOUT.buffers)]
    with pytest.raises(LayoutError) as caught:
        Pools(LAYOUT, regions)
    assert "('layer.4.v', 1280) instead of ('layer.3.k', 1280)" in caught.value.there_is


# Pages that are no neighbours

ITEM = 8 * 2 * 4 * 2


def test_planes_of_one_tensor_are_two_pools() -> None:
    caches = [torch.zeros(2, 10, 8, 2, 4, dtype=torch.bfloat16) for _ in range(2)]
    views = [cache[part] for part in (0, 1) for cache in caches]
    pools = Pools(LAYOUT, [Region.of(b.name, v) for b, v in zip(LAYOUT.buffers, views, strict=True)])
    assert [r.address for r in pools.regions] == [
        cache.data_ptr() + part * 10 * ITEM for part in (0, 1) for cache in caches
    ]
    assert pools.layout == LAYOUT


def test_keys_and_values_of_a_block_side_by_side_are_two_pools_with_gaps() -> None:
    caches = [torch.zeros(10, 2, 8, 2, 4, dtype=torch.bfloat16) for _ in range(2)]
    views = [cache[:, part] for part in (0, 1) for cache in caches]
    pools = Pools(LAYOUT, [Region.of(b.name, v) for b, v in zip(LAYOUT.buffers, views, strict=True)])
    assert [(r.length, r.item_len, r.item_stride) for r in pools.kv] == [(19 * ITEM, ITEM, 2 * ITEM)] * 4
    assert [b.item_stride for b in pools.layout.buffers] == [2 * ITEM] * 4
    assert (
        attrs.evolve(
            pools.layout, buffers=tuple(attrs.evolve(b, item_stride=0) for b in pools.layout.buffers)
        )
        == LAYOUT
    )
    assert RegionTable.of(pools.layout, (), None, 0) == pools.table


def test_a_layout_may_say_itself_how_far_pages_lie_apart() -> None:
    apart = attrs.evolve(
        LAYOUT, buffers=tuple(attrs.evolve(b, item_stride=ITEM + 32) for b in LAYOUT.buffers)
    )
    pools = Pools.allocate(apart)
    assert [(r.length, r.item_stride) for r in pools.kv] == [(9 * (ITEM + 32) + ITEM, ITEM + 32)] * 4
    assert [a.shape for a in pools.arrays] == [(10, ITEM)] * 4
    by_hand = [attrs.evolve(r, item_len=0, item_stride=0) for r in pools.kv]
    assert Pools(apart, by_hand).regions == pools.regions


def test_state_slots_may_share_a_block_with_others() -> None:
    block = np.zeros((4, 6 + 10 + 16), np.uint8)
    regions = Region.of("state.mamba.conv", block[:, :6]), Region.of("state.mamba.ssm", block[:, 6:16])
    kv = [memory(b.name, 1280) for b in LAYOUT.buffers]
    pools = Pools(LAYOUT, kv, state=[StatePool(MAMBA, regions)])
    assert [(r.length, r.item_len, r.item_stride) for r in pools.state[0].regions] == [
        (3 * 32 + 6, 6, 32),
        (3 * 32 + 10, 10, 32),
    ]
    assert [b.item_stride for b in pools.state[0].component.buffers] == [32, 32]


@pytest.mark.parametrize(
    ("view", "there_is"),
    [
        (np.zeros((10, 200), np.uint8)[:, :64], "('layer.3.k', 1864) in items of 64, 200 apart"),
        (np.zeros((9, 200), np.uint8)[:, :128], "('layer.3.k', 1728) in items of 128, 200 apart"),
        (np.zeros((2, 10, 128), np.uint8), "('layer.3.k', 2560) instead of ('layer.3.k', 1280)"),
    ],
)
def test_strided_pages_that_are_not_the_layouts_are_refused(
    view: npt.NDArray[np.uint8], there_is: str
) -> None:
    others = [memory(b.name, 1280) for b in LAYOUT.buffers[1:]]
    with pytest.raises(LayoutError) as caught:
        Pools(LAYOUT, [Region.of("layer.3.k", view), *others])
    assert there_is in caught.value.there_is
    assert "hand in t[0] and t[1]" in caught.value.to_do


def test_planes_are_no_fused_pages_though_there_are_as_many_bytes() -> None:
    fused = KVLayout.heads(
        layers=[3], kv_heads=2, head_dim=4, page_size=8, num_pages=10, order=PageOrder.KV_TOKEN_HEAD
    )
    with pytest.raises(LayoutError, match=r"region 'layer\.3\.kv' does not begin with its items") as caught:
        Pools(fused, [Region.of("layer.3.kv", torch.zeros(2, 10, 8, 2, 4, dtype=torch.bfloat16))])
    assert caught.value.there_is == "shape (2, 10, 8, 2, 4), 10 items (pages or slots)"
    assert "hand in t[0] as k and t[1] as v" in caught.value.to_do
    for shape in ((10, 2, 8, 2, 4), (10 * 2, 8, 2, 4), (10 * 2 * 8 * 2 * 4,)):
        assert Pools(fused, [Region.of("layer.3.kv", torch.zeros(shape, dtype=torch.bfloat16))]).kv


def test_slots_come_first_in_the_memory_of_state_too() -> None:
    regions = Region.of("state.mamba.conv", np.zeros((6, 4), np.uint8)), memory("state.mamba.ssm", 40)
    kv = [memory(b.name, 1280) for b in LAYOUT.buffers]
    with pytest.raises(LayoutError, match=r"region 'state\.mamba\.conv' does not begin with its items"):
        Pools(LAYOUT, kv, state=[StatePool(MAMBA, regions)])


@pytest.mark.parametrize(
    ("order", "shape"),
    [
        (PageOrder.TOKEN_HEAD, (10, 8, 2, 4)),
        (PageOrder.HEAD_TOKEN, (10, 2, 8, 4)),
        (PageOrder.HEAD_TOKEN_KV, (10, 2, 8, 8)),
        (PageOrder.HEAD_TOKEN_KV, (10, 2, 8, 2, 4)),
        (PageOrder.KV_HEAD_TOKEN, (10, 2, 2, 8, 4)),
        (PageOrder.TOKEN_KV_HEAD, (10, 8, 2, 2, 4)),
    ],
)
def test_memory_whose_shape_shows_another_order_is_refused(order: PageOrder, shape: tuple[int, ...]) -> None:
    cache = torch.zeros(shape, dtype=torch.bfloat16)
    for named in PageOrder:
        if named.fused is not order.fused:
            continue
        layout = KVLayout.heads(layers=[3], kv_heads=2, head_dim=4, page_size=8, num_pages=10, order=named)
        regions = [Region.of(b.name, cache) for b in layout.buffers]
        if named is order:
            assert Pools(layout, regions).layout == layout
        elif shape[1 + named.dims.index("token")] != 8:
            with pytest.raises(LayoutError) as caught:
                Pools(layout, regions)
            part = "kv" if order.fused else "k"
            assert caught.value.happened == (
                f"region 'layer.3.{part}' does not look like pages of order {named}"
            )
            assert caught.value.there_is == f"shape {shape}, 10 pages of 8 tokens"
        flat = [Region.of(b.name, cache.view(10, -1)) for b in layout.buffers]
        assert Pools(layout, flat).kv


@pytest.mark.parametrize("order", PageOrder)
def test_memory_that_lists_the_tokens_of_all_pages_is_token_major(order: PageOrder) -> None:
    layout = KVLayout.heads(layers=[3], kv_heads=2, head_dim=4, page_size=8, num_pages=10, order=order)
    # (tokens, heads, values) is SGLang's
    cache = torch.zeros((80, 2, 2, 4) if order.fused else (80, 2, 4), dtype=torch.bfloat16)
    regions = [Region.of(b.name, cache) for b in layout.buffers]
    if order.dims[0] == "token":
        assert Pools(layout, regions).kv
        return
    with pytest.raises(LayoutError, match="does not look like pages of order") as caught:
        Pools(layout, regions)
    assert caught.value.there_is == f"shape {tuple(cache.shape)}, 10 pages of 8 tokens"
    # Rows of heads may be as many.
    rows = KVLayout.heads(layers=[3], kv_heads=8, head_dim=4, page_size=8, num_pages=10, order=order)
    wide = torch.zeros((80, 8, 8 if order.fused else 4), dtype=torch.bfloat16)
    assert Pools(rows, [Region.of(b.name, wide) for b in rows.buffers]).kv


def test_a_stride_that_the_memory_does_not_have_is_refused() -> None:
    apart = attrs.evolve(LAYOUT, buffers=tuple(attrs.evolve(b, item_stride=160) for b in LAYOUT.buffers))
    regions = [Region.of(b.name, np.zeros((10, 200), np.uint8)[:, :128]) for b in LAYOUT.buffers]
    with pytest.raises(LayoutError) as caught:
        Pools(apart, regions)
    assert "in items of 128, 200 apart instead of ('layer.3.k', 1568) in items of 128, 160 apart" in str(
        caught.value
    )


def test_pages_from_the_first_to_the_last_are_fine(pools: Pools) -> None:
    pools.check_pages(ROOM, i64(0, 9, 5))
    pools.check_pages(ROOM, i64())


@pytest.mark.parametrize("bad", [-1, 10, 2**52, -(2**63)])
def test_pages_outside_the_pool_are_named(pools: Pools, bad: int) -> None:
    with pytest.raises(PlanError) as caught:
        pools.check_pages(ROOM, i64(3, bad, 4, bad))
    assert caught.value.happened == "pages of room 5 are outside the pool"
    assert caught.value.there_is == f"2 of 4, the first is {bad}; the pool holds 10 pages"
    assert caught.value.to_do == "use numbers from 0 to 9"


def draft_beside(pages: int) -> KVLayout:
    """10 pages of two layers, and a draft layer of so many."""
    draft = KVLayout.heads(layers=[9], kv_heads=1, head_dim=4, page_size=8, num_pages=pages)
    return KVLayout.heads(layers=[3, 4], kv_heads=2, head_dim=4, page_size=8, num_pages=10).beside(draft)


def test_a_buffer_may_have_a_number_of_pages_of_its_own() -> None:
    layout = draft_beside(6)
    pools = Pools.allocate(layout)
    assert [len(array) for array in pools.arrays] == [10, 10, 10, 10, 6, 6]
    assert [r.length for r in pools.kv] == [1280] * 4 + [6 * 64] * 2
    assert (pools.num_pages, Pools.allocate(draft_beside(16)).num_pages) == (6, 10)
    again = Pools(layout, [array.copy() for array in pools.arrays])
    assert again.table == pools.table == RegionTable.of(layout, (), None, 0)


def test_pages_must_lie_in_every_buffer() -> None:
    pools = Pools.allocate(draft_beside(6))
    pools.check_pages(ROOM, i64(0, 5))
    with pytest.raises(PlanError) as caught:
        pools.check_pages(ROOM, i64(5, 6, 9))
    assert caught.value.happened == "pages of room 5 are outside the pool"
    assert caught.value.there_is == "2 of 3, the first is 6; the pool holds 6 pages in layer.9.k"
    assert caught.value.to_do == "use numbers from 0 to 5"
    larger = Pools.allocate(draft_beside(16))
    with pytest.raises(PlanError) as caught:
        larger.check_pages(ROOM, i64(10))
    assert caught.value.there_is == "1 of 1, the first is 10; the pool holds 10 pages"


def test_memory_of_another_number_of_pages_than_its_buffer_says_is_refused() -> None:
    layout = draft_beside(6)
    memory = [np.zeros((10, b.item_len), np.uint8) for b in layout.buffers]
    with pytest.raises(LayoutError) as caught:
        Pools(layout, memory)
    assert "('layer.9.k', 640) instead of ('layer.9.k', 384)" in caught.value.there_is
    seven = [np.zeros((7 if b.layer == 9 else 10, b.item_len), np.uint8) for b in layout.buffers]
    with pytest.raises(LayoutError, match="are not what their layouts say"):
        Pools(layout, seven)


def test_aux_slots_are_checked(pools: Pools) -> None:
    for slot in (None, 0, 2):
        pools.aux_slot(ROOM, slot)
    for slot in (-1, 3):
        with pytest.raises(RoomError) as caught:
            pools.aux_slot(ROOM, slot)
        assert caught.value.happened == f"aux slot {slot} of room 5 does not exist"
        assert caught.value.there_is == "slots 0 to 2"


def test_without_aux_buffers_no_slot_exists() -> None:
    bare = Pools.allocate(LAYOUT)
    bare.aux_slot(ROOM, None)
    with pytest.raises(RoomError, match="the pools have no aux buffers"):
        bare.aux_slot(ROOM, 0)


def test_state_lists_are_private_copies_one_per_component(pools: Pools) -> None:
    mine = np.array([1, 2])
    first, second = pools.state_lists(ROOM, [[3], mine], due=True)
    mine[:] = 0
    assert (first.tolist(), second.tolist()) == ([3], [1, 2])
    assert pools.state_lists(ROOM, None, due=False) == ()
    assert Pools.allocate(LAYOUT).state_lists(ROOM, None, due=True) == ()


@pytest.mark.parametrize(
    ("lists", "due"), [(None, True), ([[1]], True), ([[1]] * 3, True), ([[1]] * 2, False)]
)
def test_more_or_fewer_state_lists_are_refused(
    pools: Pools, lists: list[list[int]] | None, due: bool
) -> None:
    with pytest.raises(PlanError) as caught:
        pools.state_lists(ROOM, lists, due=due)
    assert caught.value.happened == "the state index lists of room 5 do not match"
    assert caught.value.there_is == (f"{len(lists or ())} lists, 2 state components, last chunk: {due}")
    assert caught.value.to_do == "hand in one list per state component with the last chunk, and none before"
