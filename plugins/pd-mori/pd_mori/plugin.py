"""The hooks of the MORI-IO backend."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pd_mori.address import check_host
from pd_mori.build import engine_version, look, probe, try_engine
from pd_mori.config import VARIABLES, MoriOptions, Protocol, contradictions
from pd_mori.engine import CAPABILITIES, MoriEngine
from pd_mori.library import load
from pdcore.config.records import TransferModel
from pdcore.contract.backend import (
    AuxRequest,
    AuxRoute,
    BackendSpec,
    InitEngineRequest,
    ProtocolChoice,
    ProtocolRequest,
    Variant,
)
from pdcore.contract.engine import TransferEngine
from pdcore.contract.hookspecs import RequiredHooks, hookimpl
from pdcore.errors import EngineError
from pdcore.model import AuxTransport, Certainty, EffectiveTransport, new_incarnation

NO_TCP = "MORI's TCP is a name in its enum without an implementation"
NO_GPU = "HIP has no GPU here, and XGMI moves GPU memory only"
DEVICES_FIX = "look at the machine's RDMA devices and AMD GPUs: ls /sys/class/infiniband; rocm-smi"
HOW = {
    Protocol.RDMA: "the engine's only backend is RDMA, and it was created",
    Protocol.XGMI: "the engine's only backend is XGMI, which is created whether GPUs reach each other or not",
}


def facts() -> Mapping[str, str]:
    """Tell what is installed, which devices there are, and whether MORI can use them."""
    found = look()
    told = {
        "wheel": ", ".join(found.distributions) or "none (amd_mori, for Python 3.10 and 3.12)",
        "libraries missing": ", ".join(found.missing) or "none",
        "RDMA devices": ", ".join(sorted(path.name for path in Path("/sys/class/infiniband").glob("*")))
        or "none",
        **{name: value for name, value in sorted(os.environ.items()) if name.startswith("MORI_")},
    }
    if found.error:
        return told
    MoriEngine.refuse_inherited("MORI")
    machine = try_engine(MoriOptions(), os.environ, xgmi=False)
    return {**told, "an RDMA engine": machine.refusal or "can be created", "GPUs": str(machine.gpus)}


@hookimpl
def pd_backend() -> BackendSpec:
    """Declare the backend and its variants."""
    unused = dict.fromkeys((*VARIABLES, "ib_device", "aux_rdma"), "only RDMA uses it")
    return BackendSpec(
        name="mori",
        summary="MORI-IO, over RDMA or XGMI",
        runs_on="AMD GPUs with RDMA devices",
        protocols=tuple(protocol.value for protocol in Protocol),
        capabilities=CAPABILITIES,
        variants=(
            Variant("mori_xgmi", Protocol.XGMI.value, forbidden_options=unused),
            Variant("mori_tcp", Protocol.TCP.value),
        ),
        options=MoriOptions,
        probe=probe,
        facts=facts,
        engine_version=engine_version,
        transfer_model=TransferModel.INLINE,
    )


@hookimpl
def pd_choose_protocol(request: ProtocolRequest) -> ProtocolChoice:
    """The name is the protocol; an engine of it must have been created, in another process."""
    wanted = Protocol(request.variant.protocol) if request.variant else Protocol.RDMA
    refused, fix = _objection(wanted, _options(request.options), request.environment)
    ground = "an engine of it can be created"
    return ProtocolChoice.by_name(request, ground=ground, refused=refused, fix=fix)


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    """Load the library and start an engine, after looking at what MORI would end the process for."""
    options, protocol = _options(request.options), Protocol(request.protocol)
    xgmi = protocol is Protocol.XGMI
    check_host(request.host)
    MoriEngine.refuse_inherited("MORI")
    machine = try_engine(options, os.environ, xgmi=xgmi)
    if machine.refusal:
        raise EngineError("MORI cannot start an engine here", machine.refusal, DEVICES_FIX)
    library = load(options)
    native = library.engine(new_incarnation(), request.host, options, xgmi=xgmi)
    certainty = Certainty.INFERRED if xgmi else Certainty.VERIFIED
    transport = EffectiveTransport(protocol.value, certainty, HOW[protocol])
    # XGMI moves no host memory, where aux rows lie.
    return MoriEngine(library, native, transport, gpus=machine.gpus > 0, aux=not xgmi)


@hookimpl
def pd_aux_transport(request: AuxRequest) -> AuxRoute:
    """Send aux rows over TCP; through the engine if the option says so and it reaches host memory."""
    engine = _options(request.options).aux_rdma and request.protocol == Protocol.RDMA.value
    return AuxRoute(AuxTransport.ENGINE if engine else AuxTransport.TCP)


def _objection(protocol: Protocol, options: MoriOptions, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return why a protocol cannot be used here, or "", and what to do if not."""
    if protocol is Protocol.TCP:
        return NO_TCP, "select mori, or another backend for TCP: mooncake_tcp, nixl_tcp"
    if told := contradictions(options, environ):
        return "; ".join(told.values()), f"unset {' '.join(told)}, or take it out of the options"
    MoriEngine.refuse_inherited("MORI")
    machine = try_engine(options, environ, xgmi=protocol is Protocol.XGMI)
    if protocol is Protocol.XGMI and not machine.refusal and not machine.gpus:
        return NO_GPU, "select mori, or run where rocm-smi shows a GPU"
    return machine.refusal, DEVICES_FIX


def _options(options: object) -> MoriOptions:
    assert isinstance(options, MoriOptions)
    return options


if TYPE_CHECKING:
    import pd_mori.plugin as this

    _checked: RequiredHooks = this
