from __future__ import annotations

from typing import Any

import attrs
import pytest
from wire_samples import DESCRIPTION

from pdcore.backend import AuxTransport
from pdcore.errors import IncompatiblePeerError
from pdcore.layout import AuxField, AuxSchema, KVBuffer, KVLayout, StateComponent
from pdcore.model import Incarnation, Role
from pdcore.pairing import pairing_misfits
from pdcore.topology import Topology
from pdcore.wire import PeerDescription

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
    layout=attrs.evolve(DESCRIPTION.layout, num_pages=99),
)
SAME_MODEL = "serve the same model with the same cache settings on both sides"


def with_layout(**changes: Any) -> PeerDescription:
    return attrs.evolve(DECODE, layout=attrs.evolve(DECODE.layout, **changes))


def buffers(*names: str, item_len: int = 4096) -> tuple[KVBuffer, ...]:
    return tuple(KVBuffer(int(name[:-1]), name[-1], item_len) for name in names)


def test_what_may_differ_between_two_sides_is_no_misfit() -> None:
    assert pairing_misfits(PREFILL, DECODE) == ()
    assert pairing_misfits(PREFILL, attrs.evolve(DECODE, version="0.1.7")) == ()


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
        attrs.evolve(DECODE, aux_transport=AuxTransport.TCP),
        "aux transport",
        "engine",
        "tcp",
        "set transfer.aux alike on both sides",
    ),
    *(
        (
            attrs.evolve(DECODE, topology=Topology(**{f"{axis}_size": 2})),
            f"topology.{axis}_size",
            "1",
            "2",
            f"use the same {axis}_size on both sides (this version pairs equal groups only)",
        )
        for axis in ("tp", "pp", "cp")
    ),
    (with_layout(page_size=64), "layout.page_size", "16", "64", SAME_MODEL),
    (with_layout(dtype="float16"), "layout.dtype", "bfloat16", "float16", SAME_MODEL),
    (with_layout(total_kv_heads=8), "layout.total_kv_heads", "2", "8", SAME_MODEL),
    (with_layout(attention=LATENT.attention), "layout.attention", "heads", "latent", SAME_MODEL),
    (
        with_layout(buffers=buffers("0k", "1k", "0v")),
        "layout.buffers",
        "4 buffers, number 3 is layer.1.v",
        "3 buffers, number 3 is missing",
        SAME_MODEL,
    ),
    (
        with_layout(buffers=buffers("0k", "0v", "1k", "1v")),
        "layout.buffers",
        "4 buffers, number 1 is layer.1.k",
        "4 buffers, number 1 is layer.0.v",
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
        "first_token:int64[]@0, logprobs:float32[8]@0",
        "none",
        "use the same AuxSchema on both sides",
    ),
    (
        attrs.evolve(DECODE, aux=AuxSchema()),
        "aux schema",
        "first_token:int64[]@0, logprobs:float32[8]@0",
        "no fields",
        "use the same AuxSchema on both sides",
    ),
    (
        attrs.evolve(DECODE, aux=AuxSchema((AuxField("first_token", "int32", (2,), 1),))),
        "aux schema",
        "first_token:int64[]@0, logprobs:float32[8]@0",
        "first_token:int32[2]@1",
        "use the same AuxSchema on both sides",
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


def test_every_misfit_is_listed_at_once() -> None:
    decode = attrs.evolve(
        DECODE,
        version="0.2.0",
        backend="far",
        protocol="tcp",
        aux_transport=AuxTransport.TCP,
        topology=Topology(tp_size=2, pp_size=2, cp_size=2),
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
