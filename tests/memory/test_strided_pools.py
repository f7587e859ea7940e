"""Pages that are no neighbours, as engines hand their caches out, over real engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import attrs
import numpy as np
import numpy.typing as npt
import pytest
from pair import SCHEMA, SLOTS, Pair, config, finish, paired

from pdcore import (
    Config,
    KVLayout,
    MetadataBuffers,
    PageOrder,
    Pools,
    Region,
    RoomId,
    StateBuffer,
    StateComponent,
    StatePool,
)

LAYERS, PAGES, ITEM = 2, 24, 4 * 2 * 16 * 2
LAYOUT = KVLayout.heads(layers=range(LAYERS), kv_heads=2, head_dim=16, page_size=4, num_pages=PAGES)

Memory = npt.NDArray[np.uint8]


def planes() -> list[Memory]:
    """Keys of all blocks, then values of all blocks: (2, blocks, page)."""
    caches = [np.zeros((2, PAGES, ITEM), np.uint8) for _ in range(LAYERS)]
    return [cache[part] for part in (0, 1) for cache in caches]


def side_by_side() -> list[Memory]:
    """Keys and values of a block side by side: (blocks, 2, page)."""
    caches = [np.zeros((PAGES, 2, ITEM), np.uint8) for _ in range(LAYERS)]
    return [cache[:, part] for part in (0, 1) for cache in caches]


def across_layers() -> list[Memory]:
    """All layers of a block in one: (blocks, layers, 2, page)."""
    cache = np.zeros((PAGES, LAYERS, 2, ITEM), np.uint8)
    return [cache[:, layer, part] for part in (0, 1) for layer in range(LAYERS)]


def padded() -> list[Memory]:
    """Pages with 40 bytes between them."""
    return [np.zeros((PAGES, ITEM + 40), np.uint8)[:, :ITEM] for _ in range(2 * LAYERS)]


SHAPES = {shape.__name__: shape for shape in (planes, side_by_side, across_layers, padded)}


def pools(views: list[Memory]) -> Pools:
    regions = [Region.of(b.name, view) for b, view in zip(LAYOUT.buffers, views, strict=True)]
    return Pools(LAYOUT, regions, aux=MetadataBuffers(SCHEMA, SLOTS))


def verifying(verify: Literal["off", "all"]) -> Config:
    cfg = config()
    return attrs.evolve(cfg, transfer=attrs.evolve(cfg.transfer, verify=verify))


def gaps(memory: Memory, item: int) -> Memory:
    """Return a copy of what lies between the items of a view, and is nobody's."""
    base = memory.base
    assert isinstance(base, np.ndarray)
    between: Memory = base.reshape(len(memory), -1)[:, item:].copy()
    return between


def serve(pair: Pair, room: int) -> None:
    """Move scattered pages and neighbours, and check that no other page changed."""
    random = np.random.default_rng(room)
    source, target = random.permutation(PAGES)[:6].tolist(), random.permutation(PAGES - 3)[:3].tolist()
    target = [*target, *range(PAGES - 3, PAGES)]
    before = [array.copy() for array in pair.decode.pools.arrays]
    pair.move(room, source, target)
    others = [page for page in range(PAGES) if page not in target]
    for old, new in zip(before, pair.decode.pools.arrays, strict=True):
        assert np.array_equal(old[others], new[others])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("verify", ["off", "all"])
def test_pages_go_from_any_shape_of_memory_into_another(shape: str, verify: Literal["off", "all"]) -> None:
    other: Callable[[], list[Memory]] = {"planes": across_layers, "side_by_side": planes}.get(shape, padded)
    target = pools(other())
    with paired(verifying(verify), source=pools(SHAPES[shape]()), target=target) as pair:
        spaces = [gaps(array, ITEM) for array in target.arrays] if other is padded else []
        serve(pair, 1)
        serve(pair, 2)
        assert all((space == 0).all() for space in spaces)


@pytest.mark.parametrize("backend", ["mooncake_tcp", "nixl_tcp"])
def test_engines_take_pools_that_lie_between_one_another(backend: str) -> None:
    with paired(source=pools(side_by_side()), target=pools(across_layers()), backend=backend) as pair:
        serve(pair, 1)


def test_a_fused_cache_is_one_pool_without_gaps() -> None:
    layout = KVLayout.heads(
        layers=range(LAYERS), kv_heads=2, head_dim=16, page_size=4, num_pages=PAGES,
        order=PageOrder.KV_TOKEN_HEAD,
    )  # fmt: skip
    caches = [np.zeros((PAGES, 2, 4, 2, 16), np.float16) for _ in range(LAYERS)]
    whole = Pools(layout, [Region.of(b.name, c) for b, c in zip(layout.buffers, caches, strict=True)])
    assert [r.item_stride for r in whole.kv] == [0] * LAYERS
    assert whole.layout == layout


def hybrid(padding: int) -> tuple[Pools, Memory]:
    """A hybrid model's block: the convolution's state, the scan's state, and padding."""
    component = StateComponent("mamba", 6, (StateBuffer("conv", 24), StateBuffer("ssm", 40)))
    block = np.zeros((6, 24 + 40 + padding), np.uint8)
    regions = Region.of("state.mamba.conv", block[:, :24]), Region.of("state.mamba.ssm", block[:, 24:64])
    kv = [Region.of(b.name, view) for b, view in zip(LAYOUT.buffers, planes(), strict=True)]
    aux = MetadataBuffers(SCHEMA, SLOTS)
    return Pools(LAYOUT, kv, state=[StatePool(component, regions)], aux=aux), block


def test_state_that_shares_a_block_arrives_in_a_block_of_another_size() -> None:
    (source, here), (target, there) = hybrid(0), hybrid(64)
    with paired(verifying("all"), source=source, target=target) as pair:
        sender, receiver = pair.open(1)
        sender.init(1, 0)
        receiver.send_metadata([5], 0, state_indices=[[4]])
        assert source.aux is not None
        source.aux.set(0, RoomId(1), {"first_token": 1})
        sender.send([3], state_indices=[[1]])
        finish(sender, receiver)
    expected = np.zeros_like(there)
    expected[4, :64] = here[1]
    assert here[1].any()
    assert np.array_equal(there, expected)
