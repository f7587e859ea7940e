from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from wire_samples import DESCRIPTION

from pdcore.errors import IncompatiblePeerError
from pdcore.layout.aux_form import AuxForm
from pdcore.layout.aux_schema import AuxField, AuxSchema
from pdcore.layout.kv import KVBuffer, KVLayout, PageOrder, StateBuffer, StateComponent
from pdcore.layout.staging import StagingLayout
from pdcore.model import AuxTransport, Incarnation, Role
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.misfits import chosen_aux_transport, coverage_misfits, pairing_misfits
from pdcore.pairing.topology import Topology

DECODE = DESCRIPTION
PREFILL = attrs.evolve(
    DESCRIPTION,
    role=Role.PREFILL,
    incarnation=Incarnation("f" * 32),
    address="10.0.0.2:9",
    topology=Topology(),
    endpoint=b"other",
    regions=b"other",
    aux_slots=7,
    aux_transports=(AuxTransport.ENGINE,),
    layout=attrs.evolve(DESCRIPTION.layout, num_pages=99),
)
SAME_MODEL = "serve the same model with the same cache settings on both sides"
SAME_SIZES = (
    f"{SAME_MODEL}; where a layer has other KV heads than total_kv_heads, or each rank holds all of it, "
    "say so with KVBuffer(units=...)"
)
SAME_ORDER = "keep the pages in one order on both sides: pdcore copies what lies there and converts nothing"


def with_layout(**changes: Any) -> PeerDescription:
    return attrs.evolve(DECODE, layout=attrs.evolve(DECODE.layout, **changes))


def buffers(*names: str, item_len: int = 4096) -> tuple[KVBuffer, ...]:
    return tuple(KVBuffer(int(name[:-1]), name[-1], item_len) for name in names)


def test_what_may_differ_between_two_sides_is_no_misfit() -> None:
    assert pairing_misfits(PREFILL, DECODE) == ()
    assert pairing_misfits(PREFILL, attrs.evolve(DECODE, version="0.1.7")) == ()
    assert pairing_misfits(PREFILL, with_layout(buffers=DECODE.layout.buffers[::-1])) == ()


def test_a_size_that_is_known_anyway_is_no_misfit_and_another_is() -> None:
    assert pairing_misfits(PREFILL, with_layout(element_bits=16)) == ()
    here, there = (
        attrs.evolve(side, layout=attrs.evolve(side.layout, dtype="fp6", element_bits=bits))
        for side, bits in ((PREFILL, 6), (DECODE, 8))
    )
    (misfit,) = pairing_misfits(here, there)
    assert (misfit.field, misfit.prefill, misfit.decode) == ("layout.value_bits", "6", "8")


ENGINE, TCP = AuxTransport.ENGINE, AuxTransport.TCP


@pytest.mark.parametrize(
    ("prefill", "decode", "chosen"),
    [
        ((ENGINE, TCP), (ENGINE, TCP), ENGINE),
        ((ENGINE, TCP), (TCP,), TCP),
        ((TCP,), (ENGINE, TCP), TCP),
        ((ENGINE,), (ENGINE, TCP), ENGINE),
    ],
)
def test_aux_rows_travel_by_the_first_way_of_prefill_that_decode_takes_too(
    prefill: tuple[AuxTransport, ...], decode: tuple[AuxTransport, ...], chosen: AuxTransport
) -> None:
    here, there = (
        attrs.evolve(one, aux_transports=ways) for one, ways in ((PREFILL, prefill), (DECODE, decode))
    )
    assert pairing_misfits(here, there) == ()
    assert chosen_aux_transport(here, there) is chosen


LATENT = KVLayout.latent(layers=[0, 1], latent_dim=128, page_size=16, num_pages=128)

ONE_MISFIT: list[tuple[PeerDescription, str, str, str, str]] = [
    (
        attrs.evolve(DECODE, version="0.2.0"),
        "pdcore version",
        "0.1",
        "0.2",
        "run one 0.x series everywhere",
    ),
    (
        attrs.evolve(DECODE, backend="far"),
        "backend",
        "local",
        "far",
        "select the same backend on both sides",
    ),
    (
        attrs.evolve(DECODE, protocol="tcp"),
        "protocol",
        "process_vm_writev",
        "tcp",
        "select the same backend variant on both sides",
    ),
    (
        attrs.evolve(DECODE, aux_transports=(AuxTransport.TCP,)),
        "aux transport",
        "engine",
        "tcp",
        "set transfer.aux alike on both sides",
    ),
    (
        attrs.evolve(DECODE, topology=Topology(tp_size=3)),
        "topology.tp_size",
        "1",
        "3",
        "use the same tp_size on both sides, or on each 1 or a multiple of 2 (the model has 2 KV heads)",
    ),
    (
        attrs.evolve(DECODE, topology=Topology(pp_size=2)),
        "topology.pp_size",
        "1",
        "2",
        "use pp_size 1 on the decode side",
    ),
    (
        attrs.evolve(DECODE, topology=Topology(cp_size=2)),
        "topology.cp_size",
        "1",
        "2",
        "use cp_size 1 on the decode side",
    ),
    (
        attrs.evolve(DECODE, topology=Topology(tp_size=2)),
        "layout.item_len (4 buffers, first layer.0.k)",
        "4096 bytes of 2 heads",
        "4096 bytes of 1 heads",
        SAME_SIZES,
    ),
    (with_layout(page_size=64), "layout.page_size", "16", "64", SAME_MODEL),
    (with_layout(dtype="float16"), "layout.dtype", "bfloat16", "float16", SAME_MODEL),
    (with_layout(total_kv_heads=8), "layout.total_kv_heads", "2", "8", SAME_MODEL),
    (
        with_layout(order=PageOrder.HEAD_TOKEN),
        "layout.order (4 buffers, first layer.0.k)",
        "(token, head)",
        "(head, token)",
        SAME_ORDER,
    ),
    (
        with_layout(buffers=(*buffers("0k", "1k", "0v"), KVBuffer(1, "v", 4096, order=PageOrder.HEAD_TOKEN))),
        "layout.order (1 buffers, first layer.1.v)",
        "(token, head)",
        "(head, token)",
        SAME_ORDER,
    ),
    (
        with_layout(buffers=(*buffers("0k", "1k", "0v"), KVBuffer(1, "v", 4096, units=1))),
        "layout.units (1 buffers, first layer.1.v)",
        "2 units",
        "1 units",
        SAME_MODEL,
    ),
    (with_layout(attention=LATENT.attention), "layout.attention", "heads", "latent", SAME_MODEL),
    (
        with_layout(buffers=buffers("0k", "1k", "0v")),
        "layout.buffers",
        "4 buffers, 1 only here, first layer.1.v",
        "3 buffers",
        SAME_MODEL,
    ),
    (
        with_layout(buffers=buffers("0k", "1k", "2k", "0v", "1v", "2v")),
        "layout.buffers",
        "4 buffers",
        "6 buffers, 2 only here, first layer.2.k",
        SAME_MODEL,
    ),
    (
        with_layout(buffers=buffers("0k", "9k", "0v", "1v")),
        "layout.buffers",
        "4 buffers, 1 only here, first layer.1.k",
        "4 buffers, 1 only here, first layer.9.k",
        SAME_MODEL,
    ),
    (
        with_layout(buffers=buffers("0k", "1k") + buffers("0v", "1v", item_len=2048)),
        "layout.item_len (2 buffers, first layer.0.v)",
        "4096 bytes",
        "2048 bytes",
        SAME_MODEL,
    ),
    (
        attrs.evolve(DECODE, state=(*DECODE.state, StateComponent("swa", 4, DECODE.state[0].buffers))),
        "state components",
        "['mamba']",
        "['mamba', 'swa']",
        "declare the same state components in the same order",
    ),
    (
        attrs.evolve(DECODE, aux=None),
        "aux schema",
        "first_token:int64[], logprobs:float32[8]@0",
        "none",
        "use the same AuxSchema on both sides",
    ),
    (
        attrs.evolve(DECODE, aux=AuxSchema()),
        "aux schema",
        "first_token:int64[], logprobs:float32[8]@0",
        "no fields",
        "use the same AuxSchema on both sides",
    ),
    (
        attrs.evolve(DECODE, aux=AuxSchema((AuxField("first_token", "int32", (2,), 1),))),
        "aux schema",
        "first_token:int64[], logprobs:float32[8]@0",
        "first_token:int32[2]@1",
        "use the same AuxSchema on both sides",
    ),
    (
        attrs.evolve(DECODE, aux_form=AuxForm.rows(AuxSchema())),
        "aux form",
        "good",
        "1 cells for the room and 2 fields",
        "report it: a form of aux data contradicts its schema",
    ),
]


@pytest.mark.parametrize(
    ("decode", "field", "here", "there", "change"), ONE_MISFIT, ids=[case[1] for case in ONE_MISFIT]
)
def test_a_misfit_has_both_values_and_what_to_change(
    decode: PeerDescription, field: str, here: str, there: str, change: str
) -> None:
    (misfit,) = pairing_misfits(PREFILL, decode)
    assert (misfit.field, misfit.prefill, misfit.decode, misfit.change) == (field, here, there, change)


def test_where_aux_data_lies_is_each_sides_own_affair() -> None:
    assert PREFILL.aux is not None
    apart = attrs.evolve(DECODE, aux_form=AuxForm.apart(PREFILL.aux, {"logprobs": 96}))
    assert pairing_misfits(PREFILL, apart) == ()
    assert apart.aux_memory == apart.aux_form
    assert PREFILL.aux_memory == AuxForm.rows(PREFILL.aux)


def test_every_misfit_is_listed_at_once() -> None:
    decode = attrs.evolve(
        DECODE,
        version="0.2.0",
        backend="far",
        protocol="tcp",
        aux_transports=(AuxTransport.TCP,),
        topology=Topology(tp_size=3, pp_size=2, cp_size=2),
        layout=attrs.evolve(LATENT, page_size=64, dtype="float16"),
        state=(),
        aux=None,
    )
    misfits = pairing_misfits(PREFILL, decode)
    assert [m.field for m in misfits] == [
        "pdcore version",
        "backend",
        "protocol",
        "aux transport",
        "topology.tp_size",
        "topology.pp_size",
        "topology.cp_size",
        "layout.page_size",
        "layout.dtype",
        "layout.total_kv_heads",
        "layout.attention",
        "layout.buffers",
        "state components",
        "aux schema",
    ]
    text = str(IncompatiblePeerError("prefill 10.0.0.2:9", misfits))
    for misfit in misfits:
        assert f"\n    {misfit.field}: prefill {misfit.prefill}, decode {misfit.decode}" in text
        assert misfit.change in text


# Groups that differ


def rank_of(
    role: Role, topology: Topology, layers: Sequence[int] = (0, 1), **changes: Any
) -> PeerDescription:
    """A rank of a model with 8 KV heads: its own heads follow from its topology."""
    layout = KVLayout.heads(
        layers=layers,
        kv_heads=max(1, 8 // topology.tp_size),
        head_dim=64,
        page_size=16,
        num_pages=128,
        total_kv_heads=8,
    )
    return attrs.evolve(
        DESCRIPTION, role=role, topology=topology, layout=attrs.evolve(layout, **changes), state=()
    )


def prefill_of(layers: Sequence[int] = (0, 1), **place: Any) -> PeerDescription:
    return rank_of(Role.PREFILL, Topology(**place), layers)


def decode_of(layers: Sequence[int] = (0, 1), **place: Any) -> PeerDescription:
    return rank_of(Role.DECODE, Topology(**place), layers)


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        (prefill_of(tp_size=4, tp_rank=3), decode_of(tp_size=2, tp_rank=1)),
        (prefill_of(tp_size=2), decode_of(tp_size=4, tp_rank=1)),
        (prefill_of(tp_size=16), decode_of(tp_size=8)),
        (prefill_of(tp_size=16), decode_of()),
        (prefill_of(cp_size=2, cp_rank=1, dp_size=2), decode_of(dp_size=8, dp_rank=5)),
        (prefill_of([1], pp_size=2, pp_rank=1), decode_of()),
        (prefill_of([1], pp_size=2, pp_rank=1), decode_of([1], pp_size=2, pp_rank=1)),
    ],
)
def test_legal_groups_of_other_sizes_are_no_misfit(prefill: PeerDescription, decode: PeerDescription) -> None:
    assert pairing_misfits(prefill, decode) == ()


def test_an_illegal_pair_names_every_field_with_both_values_and_what_is_legal() -> None:
    decode = rank_of(Role.DECODE, Topology(tp_size=2, cp_size=2), page_size=64, dtype="float16")
    misfits = pairing_misfits(prefill_of(tp_size=3), decode)
    assert [(m.field, m.prefill, m.decode) for m in misfits] == [
        ("topology.tp_size", "3", "2"),
        ("topology.cp_size", "1", "2"),
        ("layout.page_size", "16", "64"),
        ("layout.dtype", "bfloat16", "float16"),
    ]
    assert "on each 1, 2, 4 or a multiple of 8 (the model has 8 KV heads)" in misfits[0].change


def test_heads_of_another_size_are_seen_between_ranks_of_unequal_tp() -> None:
    wide = rank_of(Role.PREFILL, Topology(tp_size=4), buffers=buffers("0k", "1k", "0v", "1v", item_len=4100))
    (misfit,) = pairing_misfits(wide, decode_of(tp_size=2))
    assert misfit.field == "layout.item_len (4 buffers, first layer.0.k)"
    assert (misfit.prefill, misfit.decode) == ("4100 bytes of 2 heads", "8192 bytes of 4 heads")


def test_a_layer_that_only_prefill_has_is_a_misfit_whatever_the_stages() -> None:
    (misfit,) = pairing_misfits(prefill_of([0, 61], pp_size=2), decode_of())
    assert misfit.field == "layout.buffers"
    assert (misfit.prefill, misfit.decode) == ("4 buffers, 2 only here, first layer.61.k", "4 buffers")


def test_stages_that_cut_the_layers_elsewhere_are_a_misfit() -> None:
    (misfit,) = pairing_misfits(prefill_of([0], pp_size=2), decode_of([0, 1], pp_size=2))
    assert misfit.decode == "4 buffers, 2 only here, first layer.1.k"


# What a decode rank gets from all stages together


def test_stages_that_hold_every_layer_once_cover_a_decode_rank() -> None:
    stages = [
        prefill_of([pp], pp_size=2, pp_rank=pp, tp_size=2, tp_rank=tp) for pp in (0, 1) for tp in (0, 1)
    ]
    assert coverage_misfits(stages, decode_of()) == ()


def test_every_context_parallel_rank_covers_a_decode_rank() -> None:
    first = prefill_of(cp_size=2)
    assert coverage_misfits([first, prefill_of(cp_size=2, cp_rank=1)], decode_of()) == ()
    (misfit,) = coverage_misfits([first, prefill_of([0], cp_size=2, cp_rank=1)], decode_of())
    assert (misfit.field, misfit.prefill) == ("layout.buffers", "layer.1.k from no rank")


def test_a_layer_that_nobody_sends_is_a_misfit() -> None:
    stages = [prefill_of([pp], pp_size=2, pp_rank=pp) for pp in (0, 1)]
    (misfit,) = coverage_misfits(stages, decode_of([0, 1, 2]))
    assert (misfit.field, misfit.prefill, misfit.decode, misfit.change) == (
        "layout.buffers",
        "layer.2.k from no rank",
        "layer.2.k exactly once",
        "give every layer to exactly one pipeline stage",
    )
    (none,) = coverage_misfits([], decode_of())
    assert none.prefill == "layer.0.k from no rank"


def test_a_layer_that_two_stages_send_is_a_misfit() -> None:
    stages = [prefill_of([0, 7], pp_size=2), prefill_of([1, 7], pp_size=2, pp_rank=1)]
    (misfit,) = coverage_misfits(stages, decode_of([0, 1, 7]))
    assert misfit.prefill == "layer.7.k from ranks 0, 1"


def test_state_that_two_stages_send_is_a_misfit() -> None:
    first, last = StateBuffer("conv.0", 8, (8,), 0), StateBuffer("conv.1", 8, (8,), 0)
    decode = attrs.evolve(decode_of(), state=(StateComponent("mamba", 4, (first, last)),))
    stages = [prefill_of([pp], pp_size=2, pp_rank=pp) for pp in (0, 1)]
    split = [
        attrs.evolve(stage, state=(StateComponent("mamba", 4, (buffer,)),))
        for stage, buffer in zip(stages, (first, last), strict=True)
    ]
    assert coverage_misfits(split, decode) == ()
    doubled = [attrs.evolve(stage, state=split[0].state) for stage in stages]
    (misfit,) = coverage_misfits(doubled, decode)
    assert (misfit.field, misfit.prefill) == ("state 'mamba'", "conv.0 from ranks 0, 1")


def test_a_dummys_layers_count_for_nothing() -> None:
    (misfit,) = coverage_misfits([prefill_of(tp_size=16, tp_rank=1)], decode_of(tp_size=8))
    assert misfit.prefill == "layer.0.k from no rank"


# Who takes or gives bytes only packed

ALWAYS, AUTO = StagingLayout(8, 8, 2**22, always=True), StagingLayout(2, 4, 2**20)


@pytest.mark.parametrize(("prefill", "decode"), [("always", "none"), ("none", "always")])
def test_where_one_side_always_packs_the_other_needs_slots(prefill: str, decode: str) -> None:
    staging = {"always": ALWAYS, "none": None}
    (misfit,) = pairing_misfits(
        attrs.evolve(PREFILL, staging=staging[prefill]), attrs.evolve(DECODE, staging=staging[decode])
    )
    assert (misfit.field, misfit.prefill, misfit.decode) == ("transfer.staging", prefill, decode)
    assert misfit.change == "set transfer.staging = 'always' on both sides"


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        (None, None),
        (AUTO, None),
        (None, AUTO),
        (AUTO, AUTO),
        (ALWAYS, AUTO),
        (AUTO, ALWAYS),
        (ALWAYS, ALWAYS),
    ],
)
def test_rings_of_any_size_fit_and_those_that_may_be_spared_need_no_other(
    prefill: StagingLayout | None, decode: StagingLayout | None
) -> None:
    here, there = attrs.evolve(PREFILL, staging=prefill), attrs.evolve(DECODE, staging=decode)
    assert pairing_misfits(here, there) == ()
