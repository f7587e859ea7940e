"""A backend that keeps the contract, with a variant and an engine that moves nothing."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from enum import Enum

import attrs

from pdcore.contract.backend import (
    AuxRequest,
    AuxRoute,
    BackendSpec,
    InitEngineRequest,
    ProtocolChoice,
    ProtocolRequest,
    ProtocolVerdict,
    Variant,
)
from pdcore.contract.engine import EngineCapabilities, Peer, TransferEngine
from pdcore.contract.hookspecs import hookimpl
from pdcore.contract.outcome import Finished, Transfer
from pdcore.contract.regions import Region, RegionInfo, WriteBatch
from pdcore.errors import EngineError
from pdcore.model import CPU, AuxTransport, Certainty, Deadline, Device, DeviceKind, EffectiveTransport


class AuxWish(Enum):
    TCP = "tcp"
    TCP_DEVICE = "tcp_device"
    ENGINE = "engine"


@attrs.frozen
class Options:
    threads: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    device: str = ""
    without_rdma: bool = False
    aux: AuxWish = AuxWish.TCP
    certainty: Certainty = Certainty.VERIFIED
    start: str = "at once"


starting = threading.Event()
release = threading.Event()
engines: list[GoodEngine] = []


class GoodEngine(TransferEngine):
    capabilities = EngineCapabilities()

    def __init__(self, transport: EffectiveTransport) -> None:
        super().__init__()
        self.effective_transport = transport
        self.closed = threading.Event()
        self.environment = {name: os.environ.get(name) for name in ("GOOD_FORCE_TCP", "GOOD_DEVICE")}

    def endpoint(self) -> bytes:
        return b"good"

    def do_register(self, regions: Sequence[Region]) -> bytes:
        return b""

    def do_deregister(self) -> None:
        return

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        return Peer(endpoint, regions)

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        return Finished()

    def do_disconnect(self, peer: Peer) -> None:
        return

    def do_close(self) -> None:
        self.closed.set()


@hookimpl
def pd_backend() -> BackendSpec:
    return BackendSpec(
        name="good",
        summary="a fixture",
        runs_on="anything",
        protocols=("rdma", "tcp"),
        capabilities=EngineCapabilities(),
        options=Options,
        variants=(
            Variant(
                "good_tcp",
                protocol="tcp",
                environment={"GOOD_FORCE_TCP": "1", "GOOD_DEVICE": None},
                forbidden_environment={"GOOD_FORCE_HCA": "it asks for RDMA"},
                forbidden_options={"device": "TCP has no device"},
                defaults={"threads": 4},
            ),
        ),
    )


@hookimpl
def pd_choose_protocol(request: ProtocolRequest) -> ProtocolChoice | None:
    assert isinstance(request.options, Options)
    if request.variant is not None:
        return None
    if request.options.without_rdma:
        verdicts = (ProtocolVerdict("rdma", False, "no RDMA device"),)
        return ProtocolChoice(None, verdicts, "select good_tcp")
    return ProtocolChoice("rdma", (ProtocolVerdict("rdma", True, "a device is there"),))


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    assert isinstance(request.options, Options)
    if request.options.start == "never":
        raise EngineError("the good engine cannot start", "it was told so", "tell it otherwise")
    if request.options.start == "late":
        starting.set()
        release.wait(60)
    engine = GoodEngine(EffectiveTransport(request.protocol, request.options.certainty, "it says so"))
    engines.append(engine)
    return engine


@hookimpl
def pd_aux_transport(request: AuxRequest) -> AuxRoute:
    assert isinstance(request.options, Options)
    wish = request.options.aux
    transport = AuxTransport.ENGINE if wish is AuxWish.ENGINE else AuxTransport.TCP
    return AuxRoute(transport, Device(DeviceKind.CUDA, 1) if wish is AuxWish.TCP_DEVICE else CPU)
