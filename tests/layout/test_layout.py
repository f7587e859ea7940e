from __future__ import annotations

import itertools
from typing import Any

import attrs
import numpy as np
import pytest
import torch

from pdcore.errors import LayoutError
from pdcore.layout.aux_schema import AuxField, AuxSchema
from pdcore.layout.elements import ELEMENT_BITS, element_name
from pdcore.layout.kv import Attention, KVBuffer, KVLayout, PageOrder, StateBuffer, StateComponent


@pytest.fixture
def layout() -> KVLayout:
    return KVLayout.heads(layers=[4, 5], kv_heads=2, head_dim=8, page_size=16, num_pages=10)


def test_a_heads_layout_has_all_keys_and_then_all_values(layout: KVLayout) -> None:
    assert [b.name for b in layout.buffers] == ["layer.4.k", "layer.5.k", "layer.4.v", "layer.5.v"]
    assert [b.item_len for b in layout.buffers] == [16 * 2 * 8 * 2] * 4
    assert (layout.attention, layout.total_kv_heads) == (Attention.HEADS, 2)
    assert layout.page_bytes == 4 * 512
    assert layout.item_lens.dtype == np.uint64
    assert layout.item_lens.tolist() == [512] * 4


def test_a_rank_may_hold_a_part_of_the_heads() -> None:
    layout = KVLayout.heads(
        layers=[0], kv_heads=2, head_dim=8, page_size=1, num_pages=1, dtype="float32", total_kv_heads=8
    )
    assert (layout.total_kv_heads, layout.page_bytes) == (8, 2 * 2 * 8 * 4)


def test_a_latent_layout_has_one_buffer_per_layer() -> None:
    layout = KVLayout.latent(layers=[0, 1, 2], latent_dim=576, page_size=64, num_pages=3)
    assert [b.name for b in layout.buffers] == ["layer.0.latent", "layer.1.latent", "layer.2.latent"]
    assert [b.item_len for b in layout.buffers] == [64 * 576 * 2] * 3
    assert (layout.attention, layout.total_kv_heads) == (Attention.LATENT, 0)


def test_heads_are_shared_out_and_a_latent_is_one_unit(layout: KVLayout) -> None:
    assert attrs.evolve(layout, total_kv_heads=8).units == (8,)
    assert KVLayout.latent(layers=[0], latent_dim=576, page_size=64, num_pages=3).units == (1,)


def test_a_buffer_may_have_a_number_of_pages_of_its_own(layout: KVLayout) -> None:
    draft = KVLayout.heads(layers=[9], kv_heads=2, head_dim=8, page_size=16, num_pages=4)
    both = layout.beside(draft)
    assert [both.pages_of(b) for b in both.buffers] == [10, 10, 10, 10, 4, 4]
    assert [b.num_pages for b in both.buffers] == [None] * 4 + [4] * 2
    assert both.smallest.name == "layer.9.k"
    assert layout.smallest.name == "layer.4.k"
    assert [b.num_pages for b in draft.beside(layout).buffers] == [None] * 2 + [10] * 4
    with pytest.raises(LayoutError) as caught:
        attrs.evolve(layout, buffers=(KVBuffer(0, "k", 8, num_pages=0),))
    assert "layer.0.k.num_pages=0" in caught.value.there_is


def test_a_buffer_may_have_units_and_an_order_of_its_own(layout: KVLayout) -> None:
    scale = KVBuffer(4, "k_scale", 64, units=1, order=PageOrder.HEAD_TOKEN)
    mixed = attrs.evolve(layout, total_kv_heads=8, buffers=(*layout.buffers, scale))
    assert mixed.units == (1, 8)
    assert [mixed.units_of(b) for b in mixed.buffers] == [8, 8, 8, 8, 1]
    assert [mixed.order_of(b) for b in mixed.buffers[3:]] == [PageOrder.TOKEN_HEAD, PageOrder.HEAD_TOKEN]
    assert [mixed.rows_of(b) for b in mixed.buffers[3:]] == [16, 1]


@pytest.mark.parametrize(
    ("order", "rows", "fused"),
    [
        (PageOrder.TOKEN_HEAD, 16, False),
        (PageOrder.HEAD_TOKEN, 1, False),
        (PageOrder.KV_TOKEN_HEAD, 32, True),
        (PageOrder.KV_HEAD_TOKEN, 2, True),
        (PageOrder.TOKEN_KV_HEAD, 32, True),
        (PageOrder.TOKEN_HEAD_KV, 16, True),
        (PageOrder.HEAD_KV_TOKEN, 1, True),
        (PageOrder.HEAD_TOKEN_KV, 1, True),
    ],
)
def test_an_order_tells_into_how_many_pieces_a_page_of_16_tokens_falls(
    order: PageOrder, rows: int, fused: bool
) -> None:
    assert (order.rows(16), order.fused) == (rows, fused)
    layout = KVLayout.heads(
        layers=[4, 5], kv_heads=2, head_dim=8, page_size=16, num_pages=10, order=order, total_kv_heads=4
    )
    assert [(b.name, b.item_len) for b in layout.buffers] == (
        [("layer.4.kv", 1024), ("layer.5.kv", 1024)]
        if fused
        else [(name, 512) for name in ("layer.4.k", "layer.5.k", "layer.4.v", "layer.5.v")]
    )


@pytest.mark.parametrize(
    ("order", "items"),
    [
        (PageOrder.HEAD_TOKEN, {"k": 4 * 2 * 192 * 2, "v": 4 * 2 * 128 * 2}),
        (PageOrder.TOKEN_HEAD_KV, {"kv": 4 * 2 * 320 * 2}),
        (PageOrder.HEAD_TOKEN_KV, {"kv": 4 * 2 * 320 * 2}),
    ],
)
def test_values_may_be_of_another_width_than_keys(order: PageOrder, items: dict[str, int]) -> None:
    layout = KVLayout.heads(
        layers=[0], kv_heads=2, head_dim=192, v_head_dim=128, page_size=4, num_pages=2, order=order
    )
    assert {b.part: b.item_len for b in layout.buffers} == items


@pytest.mark.parametrize(
    "order",
    [PageOrder.KV_TOKEN_HEAD, PageOrder.KV_HEAD_TOKEN, PageOrder.TOKEN_KV_HEAD, PageOrder.HEAD_KV_TOKEN],
)
def test_keys_and_values_of_different_widths_do_not_make_equal_halves(order: PageOrder) -> None:
    with pytest.raises(LayoutError) as caught:
        KVLayout.heads(
            layers=[0], kv_heads=2, head_dim=192, v_head_dim=128, page_size=4, num_pages=2, order=order
        )
    assert caught.value.happened == f"K and V of different widths cannot be fused in the order {order}"
    assert caught.value.there_is == "head_dim 192, v_head_dim 128"
    assert caught.value.to_do.startswith("use an order that ends with kv")


def test_every_order_is_known() -> None:
    assert {order.dims for order in PageOrder} == {
        dims
        for names in (("token", "head"), ("kv", "token", "head"))
        for dims in itertools.permutations(names)
    }
    assert str(PageOrder.HEAD_TOKEN_KV) == "(head, token, kv)"


def test_layers_of_other_heads_stand_beside_each_other_and_each_says_what_it_is() -> None:
    def part(layers: list[int], heads: int, dim: int, order: PageOrder) -> KVLayout:
        return KVLayout.heads(
            layers=layers,
            kv_heads=heads // 2,
            total_kv_heads=heads,
            head_dim=dim,
            page_size=4,
            num_pages=9,
            order=order,
        )

    window = part([0, 2], 8, 8, PageOrder.TOKEN_HEAD)
    both = window.beside(part([1], 4, 16, PageOrder.HEAD_TOKEN_KV))
    assert (both.total_kv_heads, both.units, both.attention) == (8, (4, 8), Attention.HEADS)
    assert [(b.name, b.units, b.order) for b in both.buffers[3:]] == [
        ("layer.2.v", 8, PageOrder.TOKEN_HEAD),
        ("layer.1.kv", 4, PageOrder.HEAD_TOKEN_KV),
    ]
    latent = KVLayout.latent(layers=[7], latent_dim=8, page_size=4, num_pages=9)
    assert latent.beside(window).units == (1, 8)
    assert latent.beside(attrs.evolve(latent, buffers=(KVBuffer(8, "latent", 64),))).total_kv_heads == 0
    with pytest.raises(LayoutError, match="two KV layouts do not fit beside each other") as caught:
        window.beside(attrs.evolve(latent, page_size=8))
    assert caught.value.there_is == "page_size 4 and 8"
    with pytest.raises(LayoutError) as caught:
        window.beside(attrs.evolve(latent, dtype="float16", fingerprint={"model": "a"}))
    assert caught.value.there_is.startswith("dtype 'bfloat16' and 'float16', fingerprint ")
    with pytest.raises(LayoutError, match="contradicts itself"):
        window.beside(window)


@pytest.mark.parametrize(("dtype", "bits"), ELEMENT_BITS.items())
def test_every_dtype_has_its_size(dtype: str, bits: int) -> None:
    assert KVLayout.latent(layers=[0], latent_dim=6, page_size=5, num_pages=1, dtype=dtype).page_bytes == (
        30 * bits // 8
    )


def test_the_dtypes_of_torch_have_the_sizes_that_torch_gives_them() -> None:
    for name, bits in ELEMENT_BITS.items():
        values = 2 if name.endswith("_x2") else 1
        dtype = getattr(torch, name)
        assert torch.empty(1, dtype=dtype).element_size() * 8 == values * bits
        assert KVLayout.latent(layers=[0], latent_dim=2, page_size=1, num_pages=1, dtype=dtype).dtype == name


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float8_e4m3fnuz, "float8_e4m3fnuz"),
        ("torch.bfloat16", "bfloat16"),
        (np.float16, "float16"),
        (np.dtype("float32"), "float32"),
    ],
)
def test_a_dtype_may_be_an_object_where_its_meaning_is_plain(dtype: object, name: str) -> None:
    layout = KVLayout.heads(layers=[0], kv_heads=1, head_dim=8, page_size=1, num_pages=1, dtype=dtype)
    assert layout.dtype == name


@pytest.mark.parametrize("dtype", ["auto", "fp8", "int3", "", None, int, torch.complex64])
def test_a_dtype_of_unknown_meaning_is_refused(dtype: object) -> None:
    with pytest.raises(LayoutError) as caught:
        KVLayout.heads(layers=[0], kv_heads=1, head_dim=8, page_size=1, num_pages=1, dtype=dtype)
    assert caught.value.there_is == f"dtype={element_name(dtype)!r}"
    assert caught.value.to_do.endswith("or any name with its element_bits")


def test_of_a_dtype_the_size_is_enough() -> None:
    layout = KVLayout.latent(
        layers=[0], latent_dim=656, page_size=64, num_pages=2, dtype="fp8_ds_mla", element_bits=8
    )
    assert (layout.dtype, layout.page_bytes) == ("fp8_ds_mla", 656 * 64)
    six = KVLayout.heads(
        layers=[0], kv_heads=1, head_dim=128, page_size=1, num_pages=1, dtype="fp6", element_bits=6
    )
    assert six.buffers[0].item_len == 96


@pytest.mark.parametrize(("dtype", "bits"), [("float4_e2m1fn_x2", None), ("fp6", 6)])
def test_a_head_that_ends_within_a_byte_is_refused(dtype: str, bits: int | None) -> None:
    with pytest.raises(LayoutError, match="a head of one token ends within a byte") as caught:
        KVLayout.heads(
            layers=[0], kv_heads=2, head_dim=7, page_size=2, num_pages=1, dtype=dtype, element_bits=bits
        )
    assert caught.value.there_is == f"7 values of {bits or 4} bits ({dtype})"
    assert caught.value.to_do == "use a head_dim (or latent_dim) that fills whole bytes"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"page_size": 0}, "page_size=0"),
        ({"num_pages": -1}, "num_pages=-1"),
        ({"dtype": "int3"}, "dtype='int3'"),
        ({"total_kv_heads": 0}, "total_kv_heads=0"),
        ({"buffers": ()}, "no buffers"),
        ({"buffers": (KVBuffer(0, "k", 0),)}, "layer.0.k.item_len=0"),
        ({"buffers": (KVBuffer(0, "k", 8), KVBuffer(0, "k", 8))}, "layer.0.k twice"),
        ({"buffers": (KVBuffer(0, "k", 8, units=0),)}, "layer.0.k.units=0"),
        ({"buffers": (KVBuffer(0, "k", 8, order="head token"),)}, "layer.0.k.order='head token'"),  # type: ignore[arg-type]  # what is tested
        ({"buffers": (KVBuffer(0, "kv", 8),)}, "layer.0.kv of order (token, head)"),
        (
            {"order": PageOrder.TOKEN_KV_HEAD},
            ", ".join(f"layer.{n}.{part} of order (token, kv, head)" for part in "kv" for n in (4, 5)),
        ),
        ({"element_bits": 8}, "element_bits=8"),
        ({"dtype": "fp6", "element_bits": 0}, "element_bits=0"),
        ({"page_size": 0, "dtype": "int3", "buffers": ()}, "page_size=0, dtype='int3', no buffers"),
    ],
)
def test_a_layout_that_contradicts_itself_names_every_contradiction(
    layout: KVLayout, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(LayoutError) as caught:
        attrs.evolve(layout, **changes)
    assert caught.value.happened == "the KV layout contradicts itself"
    assert caught.value.there_is == named
    assert "bfloat16" in caught.value.to_do


def test_aux_fields_and_rows_start_at_multiples_of_64_bytes() -> None:
    schema = AuxSchema(
        (AuxField("token", "int64"), AuxField("logprobs", "float32", (20,)), AuxField("flag", "bool"))
    )
    assert schema.offsets() == {"token": 64, "logprobs": 128, "flag": 256}
    assert schema.row_len == 320
    assert [f.nbytes for f in schema.fields] == [8, 80, 1]


def test_a_schema_without_fields_is_a_header() -> None:
    assert (AuxSchema().offsets(), AuxSchema().row_len) == ({}, 64)


def test_a_schema_that_names_a_field_twice_is_refused() -> None:
    with pytest.raises(LayoutError, match="names 'a' twice") as caught:
        AuxSchema((AuxField("a", "int8"), AuxField("b", "int8"), AuxField("a", "int16")))
    assert caught.value.there_is == "fields a, b, a"
    assert caught.value.to_do == "give each field its own name"


@pytest.mark.parametrize(
    ("dtype", "shape"), [("object", ()), ("O", ()), ("nonsense", ()), ("int32", (0,)), ("int32", (2, -1))]
)
def test_a_field_that_cannot_lie_in_memory_is_refused(dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError, match="the aux field 'a' cannot lie in memory") as caught:
        AuxField("a", dtype, shape)
    assert caught.value.there_is == f"dtype {dtype!r}, shape {shape}"
    assert "float32" in caught.value.to_do


def test_a_sliced_state_buffer_tells_its_rows_and_the_bytes_of_its_blocks() -> None:
    conv = StateBuffer("conv", 3 * 8 * 2, shape=(3, 8), slice_dim=1, groups=(2, 2, 4))
    assert (conv.outer, conv.blocks) == (3, (4, 4, 8))
    ssm = StateBuffer("ssm", 4 * 5 * 4, shape=(4, 5), slice_dim=0)
    assert (ssm.outer, ssm.blocks) == (1, (80,))
    assert (StateBuffer("window", 32).outer, StateBuffer("window", 32).blocks) == (1, (32,))


def test_the_parts_of_all_ranks_make_the_whole_buffer() -> None:
    conv = StateBuffer("conv", 48, shape=(3, 8), slice_dim=1, groups=(2, 2, 4))
    assert conv.joined(2) == StateBuffer("conv", 96, (3, 16), 1, (4, 4, 8))


def test_a_component_is_sharded_if_a_buffer_of_it_is() -> None:
    plain, cut = StateBuffer("a", 8), StateBuffer("b", 8, (8,), 0)
    assert not StateComponent("mamba", 1, (plain,)).sharded
    assert StateComponent("mamba", 1, (plain, cut)).sharded


def test_the_parts_of_fewer_heads_than_ranks_make_the_whole_buffer() -> None:
    heads = StateBuffer("k", 8, shape=(2, 1, 4), slice_dim=1, units=4)
    assert heads.joined(8) == heads.joined(4) == attrs.evolve(heads, item_len=32, shape=(2, 4, 4))
    assert [heads.units_between(*sizes) for sizes in ((8, 2), (4, 2), (2, 1), (8, 16))] == [4, 4, 2, 4]
    alone = attrs.evolve(heads, units=1)
    assert (alone.joined(8), alone.split, alone.units_between(4, 2)) == (alone, False, 1)


@pytest.mark.parametrize("changes", [{"units": 0}, {"units": 2}, {"item_stride": 7}, {"item_stride": -8}])
def test_a_state_buffer_of_impossible_units_or_strides_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(LayoutError, match="the state buffer 'a' contradicts itself"):
        StateBuffer("a", 8, **changes)  # type: ignore[arg-type]  # any field


@pytest.mark.parametrize(
    ("item_len", "shape", "slice_dim", "groups"),
    [
        (0, (), None, ()),
        (10, (4,), 0, ()),
        (8, (4,), 1, ()),
        (8, (4,), -1, ()),
        (8, (4, 0), 0, ()),
        (8, (-2, -4), 0, ()),
        (8, (4,), 0, (1, 2)),
        (8, (4,), 0, (5, -1)),
        (8, (4,), None, (4,)),
        (8, (), 0, ()),
    ],
)
def test_a_state_buffer_that_contradicts_itself_is_refused(
    item_len: int, shape: tuple[int, ...], slice_dim: int | None, groups: tuple[int, ...]
) -> None:
    with pytest.raises(LayoutError, match="the state buffer 'a' contradicts itself") as caught:
        StateBuffer("a", item_len, shape, slice_dim, groups)
    assert caught.value.there_is.startswith(f"{item_len} bytes, shape {shape}, slice_dim {slice_dim}")
    assert "a slice_dim within the shape" in caught.value.to_do


def test_a_component_that_names_a_buffer_twice_is_refused() -> None:
    with pytest.raises(LayoutError, match="the state component 'swa' names 'a' twice") as caught:
        StateComponent("swa", 1, (StateBuffer("a", 8), StateBuffer("b", 8), StateBuffer("a", 8)))
    assert caught.value.there_is == "buffers a, b, a"
    assert caught.value.to_do == "give each buffer its own name, over all pipeline stages"
