"""Into how many units the ranks share out a buffer: what it says, what its sizes say, and contradictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from wire_samples import DESCRIPTION

from pdcore.layout.kv import Attention, KVBuffer, KVLayout, PageOrder
from pdcore.model import Role
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.misfits import coverage_misfits, pairing_misfits
from pdcore.pairing.sharding import shared_units
from pdcore.pairing.topology import Topology

HEADS = {0: 8, 1: 4, 2: 8, 3: 2}
WIDTH = {0: 16, 1: 32, 2: 16, 3: 64}
PAGE = 4


def held(heads: int, tp_size: int) -> int:
    return max(1, heads // tp_size)


def layout(
    tp_size: int, *, total: int = 8, said: bool = False, layers: Sequence[int] = tuple(HEADS)
) -> KVLayout:
    """What a rank has of layers of 8, 4 and 2 heads; each buffer may say so."""
    buffers = (
        KVBuffer(n, part, PAGE * held(HEADS[n], tp_size) * WIDTH[n], units=HEADS[n] if said else None)
        for part in "kv"
        for n in layers
    )
    return KVLayout(PAGE, 9, "uint8", Attention.HEADS, total, tuple(buffers))


def described(role: Role, layout: KVLayout, **place: Any) -> PeerDescription:
    return attrs.evolve(DESCRIPTION, role=role, topology=Topology(**place), layout=layout, state=())


def by_layer(prefill: int, decode: int, ours: KVLayout, theirs: KVLayout) -> dict[int, int]:
    groups = Topology(tp_size=prefill), Topology(tp_size=decode)
    units = shared_units(*groups, ours, theirs)
    return {n: units[f"layer.{n}.k"] for n in HEADS if f"layer.{n}.k" in units}


def test_what_a_buffer_says_counts() -> None:
    assert by_layer(4, 8, layout(4, said=True), layout(8, said=True)) == HEADS


@pytest.mark.parametrize(("prefill", "decode"), [(4, 8), (8, 4), (2, 8), (8, 1), (16, 4)])
def test_sizes_tell_which_layers_have_fewer_heads(prefill: int, decode: int) -> None:
    found = by_layer(prefill, decode, layout(prefill), layout(decode))
    # Layers whose ranks are no replicas may as well be cut as the layout's heads are.
    assert {n: count for n, count in found.items() if count != 8} == {
        n: max(heads, min(prefill, decode))
        for n, heads in HEADS.items()
        if heads < max(prefill, decode) and heads < 8
    }
    assert (
        pairing_misfits(
            described(Role.PREFILL, layout(prefill), tp_size=prefill),
            described(Role.DECODE, layout(decode), tp_size=decode),
        )
        == ()
    )


def test_sizes_tell_it_between_groups_of_which_none_divides_the_other() -> None:
    def of(tp_size: int) -> KVLayout:
        parts = [KVBuffer(0, "k", PAGE * 12 // tp_size), KVBuffer(1, "k", PAGE * max(1, 2 // tp_size))]
        return KVLayout(PAGE, 9, "uint8", Attention.HEADS, 12, tuple(parts))

    groups = Topology(tp_size=6), Topology(tp_size=4)
    assert shared_units(*groups, of(6), of(4)) == {"layer.0.k": 12, "layer.1.k": 2}


def test_one_side_may_say_what_the_other_has_from_its_layout() -> None:
    ours = layout(4, layers=[0, 2], said=True)
    assert set(by_layer(4, 8, ours, layout(8, layers=[0, 2])).values()) == {8}


def test_sizes_alone_are_not_believed_where_no_layer_has_all_heads() -> None:
    ours, theirs = layout(4, layers=[1]), layout(8, layers=[1])
    assert by_layer(4, 8, ours, theirs) == {}
    (misfit,) = pairing_misfits(
        described(Role.PREFILL, ours, tp_size=4), described(Role.DECODE, theirs, tp_size=8)
    )
    assert misfit.field == "layout.item_len (2 buffers, first layer.1.k)"
    assert (misfit.prefill, misfit.decode) == ("128 bytes of 2 heads", "128 bytes of 1 heads")
    assert misfit.change.endswith("say so with KVBuffer(units=...)")


@pytest.mark.parametrize("change", ["k alone", "k and v differ", "no head fits"])
def test_a_layer_whose_buffers_contradict_each_other_is_refused(change: str) -> None:
    ours, theirs = layout(4), layout(8)
    sizes = {"k alone": {1: 256}, "k and v differ": {1: 256, 5: 64}, "no head fits": {1: 96, 5: 96}}[change]
    wrong = attrs.evolve(
        theirs,
        buffers=tuple(
            attrs.evolve(b, item_len=sizes.get(n, b.item_len)) for n, b in enumerate(theirs.buffers)
        ),
    )
    assert 1 not in by_layer(4, 8, ours, wrong)
    (misfit,) = pairing_misfits(
        described(Role.PREFILL, ours, tp_size=4), described(Role.DECODE, wrong, tp_size=8)
    )
    assert misfit.field.endswith("first layer.1.k)")


def test_units_that_the_sizes_contradict_are_refused() -> None:
    ours, theirs = layout(4, said=True), layout(8, said=True)
    wrong = attrs.evolve(
        theirs,
        buffers=(
            attrs.evolve(theirs.buffers[0], item_len=2 * theirs.buffers[0].item_len),
            *theirs.buffers[1:],
        ),
    )
    (misfit,) = pairing_misfits(
        described(Role.PREFILL, ours, tp_size=4), described(Role.DECODE, wrong, tp_size=8)
    )
    assert (misfit.field, misfit.prefill, misfit.decode) == (
        "layout.item_len (1 buffers, first layer.0.k)",
        "128 bytes of 2 heads",
        "128 bytes of 1 heads",
    )


def test_a_head_that_does_not_fit_into_the_rows_of_its_order_is_refused() -> None:
    # 36 bytes: 9 per token, which are no two heads; head-major it would be two heads of 18.
    def of(tp_size: int, order: PageOrder) -> KVLayout:
        return KVLayout(PAGE, 9, "uint8", Attention.HEADS, 2, (KVBuffer(0, "k", 36 // tp_size),), order=order)

    for order, fits in ((PageOrder.TOKEN_HEAD, False), (PageOrder.HEAD_TOKEN, True)):
        found = shared_units(Topology(), Topology(tp_size=2), of(1, order), of(2, order))
        assert bool(found) is fits


def test_coverage_counts_each_buffer_by_its_own_units() -> None:
    decode = described(Role.DECODE, layout(2, said=True), tp_size=2)
    senders = [described(Role.PREFILL, layout(8, said=True), tp_size=8, tp_rank=rank) for rank in range(4)]
    assert coverage_misfits(senders, decode) == ()
    (misfit,) = coverage_misfits(senders[:3], decode)
    assert misfit.prefill == "layer.0.k from ranks 0, 1, 2"
    (other,) = coverage_misfits([senders[0], senders[1], senders[3]], decode)
    assert other.prefill == "layer.0.k from ranks 0, 1, 3"


@pytest.mark.parametrize("order", [order for order in PageOrder if order is not PageOrder.TOKEN_HEAD])
@pytest.mark.parametrize("tp_size", [1, 2])
def test_no_order_is_converted_into_another(order: PageOrder, tp_size: int) -> None:
    def of(tp_size: int, order: PageOrder) -> KVLayout:
        whole = 64 // tp_size
        parts = (KVBuffer(0, "cache", whole),)
        return KVLayout(PAGE, 9, "uint8", Attention.HEADS, 2, parts, order=order)

    misfits = pairing_misfits(
        described(Role.PREFILL, of(1, PageOrder.TOKEN_HEAD)),
        described(Role.DECODE, of(tp_size, order), tp_size=tp_size),
    )
    (misfit,) = misfits
    assert (misfit.field, misfit.prefill, misfit.decode) == (
        "layout.order (1 buffers, first layer.0.cache)",
        "(token, head)",
        str(order),
    )
    assert "converts nothing" in misfit.change
