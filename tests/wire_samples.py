"""One message of every kind, with every optional part filled in; their bytes are in golden/*.hex."""

from __future__ import annotations

import attrs
import numpy as np

from pdcore.errors import FailureCode, Misfit
from pdcore.host.process import ProcessIdentity
from pdcore.layout.aux_form import AuxForm
from pdcore.layout.aux_schema import AuxField, AuxSchema
from pdcore.layout.kv import KVBuffer, KVLayout, PageOrder, StateBuffer, StateComponent
from pdcore.layout.staging import StagingLayout
from pdcore.model import AuxTransport, Generation, Incarnation, KVPoll, Role, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.topology import Topology
from pdcore.wire import (
    Abort,
    AuxRow,
    Bye,
    Digests,
    Failure,
    Heartbeat,
    Inquiry,
    LifeAnswer,
    LifeQuestion,
    Message,
    Opened,
    Packed,
    PairReply,
    PairRequest,
    Quiet,
    Released,
    RequestMetadata,
    RoomStatus,
    Standing,
    Unpacked,
    Verdict,
)

__all__ = ["DESCRIPTION", "FAILURE", "LIFE", "METADATA", "SAMPLES"]

LIFE = Incarnation("0123456789abcdef0123456789abcdef")
ROOM, NTH = RoomId(2**62 + 1), Generation(7)
FAILURE = Failure(FailureCode.PEER_LOST, "room 5 lost its peer", "3 heartbeats are missing", "send it again")

PROCESS = ProcessIdentity(
    "0f1e-boot", pids=4026531836, network=4026531840, clock=4026531834, pid=4711, started=99
)

AUX = AuxSchema((AuxField("first_token", "int64"), AuxField("logprobs", "float32", (8,), 0)))

DESCRIPTION = PeerDescription(
    role=Role.DECODE,
    incarnation=LIFE,
    address="10.0.0.1:4711",
    version="0.1.0",
    backend="local",
    protocol="process_vm_writev",
    topology=Topology(dp_size=2, dp_rank=1),
    layout=KVLayout.heads(
        layers=[0, 1],
        kv_heads=2,
        head_dim=64,
        page_size=16,
        num_pages=128,
        fingerprint={"revision": "8cde5ca", "model": "llama-3-8b"},
    ),
    state=(StateComponent("mamba", 8, (StateBuffer("conv", 96), StateBuffer("ssm", 1024))),),
    aux=AUX,
    aux_slots=32,
    aux_transports=(AuxTransport.ENGINE, AuxTransport.TCP),
    endpoint=b"\x00endpoint\xff",
    regions=b"\x01regions\xfe",
    verify="sample",
    process=PROCESS,
    engine_version="mooncake-transfer-engine 0.3.12",
    max_message_bytes=2**28,
)

LAYOUT = attrs.evolve(
    DESCRIPTION.layout,
    dtype="fp6",
    order=PageOrder.HEAD_TOKEN,
    element_bits=6,
    buffers=(
        KVBuffer(0, "k", 96, item_stride=128),
        KVBuffer(0, "kv_scale", 64, order=PageOrder.TOKEN_KV_HEAD, units=1, num_pages=96),
    ),
)

STATE = StateComponent(
    "mamba",
    8,
    (StateBuffer("conv", 96), StateBuffer("ssm", 1024, (8, 16), 0, (4, 4), units=8, item_stride=1120)),
)

METADATA = RequestMetadata(
    ROOM,
    NTH,
    pages=np.array([3, 1, 2**40], np.int64),
    aux_index=5,
    state_indices=(np.array([9], np.int64), np.array([], np.int64)),
    decode_prefix_len=48,
    remaining=12.5,
    trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    age=0.25,
)

FORM = AuxForm.apart(AUX, {"logprobs": 64})

_SAMPLES: tuple[Message, ...] = (
    PairRequest(
        attrs.evolve(
            DESCRIPTION,
            layout=LAYOUT,
            state=(STATE,),
            aux_form=FORM,
            staging=StagingLayout(8, 4, 2**22, True),
        ),
        ring=3,
        number=5,
    ),
    PairReply(
        attrs.evolve(DESCRIPTION, role=Role.PREFILL, aux=None, aux_slots=0, state=()),
        (Misfit("layout.page_size", "16", "64", "serve the same model"),),
        FAILURE,
        number=5,
    ),
    METADATA,
    AuxRow(ROOM, NTH, bytes(range(64))),
    RoomStatus(ROOM, NTH, 3, KVPoll.FAILED, False, FAILURE, packed=2),
    Abort(ROOM, NTH, FAILURE, asked=False, age=1.5, ended=0.5),
    Released(ROOM, NTH),
    Heartbeat(LIFE),
    Bye(LIFE, "it shut down in order", drained=True),
    Digests(
        ROOM,
        NTH,
        3,
        1,
        0,
        np.array([0, 2]),
        np.array([64, 0]),
        np.array([64, 2**40]),
        np.array([0, 2**32 - 1]),
        2,
    ),
    Verdict(ROOM, NTH, 1, 0, FAILURE),
    Packed(
        ROOM, NTH, 1, 77, *(np.array(n, np.int64) for n in ([0, 2], [0, 2, 3], [64, 0, 2**40], [64, 64, 9]))
    ),
    Unpacked(1, 77),
    Quiet(3),
    Opened(ROOM, NTH, 1.5),
    Inquiry(ROOM, NTH),
    Standing(ROOM, NTH, 3, "has not opened the room"),
    LifeQuestion(PROCESS),
    LifeAnswer(PROCESS, ended=True),
)
SAMPLES: dict[str, Message] = {type(message).__name__: message for message in _SAMPLES}
