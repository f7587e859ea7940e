"""The hooks of the Mooncake backend."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pd_mooncake.build import engine_version, probe
from pd_mooncake.config import VARIABLES, MemPool, MooncakeOptions, Protocol, device_for, with_environment
from pd_mooncake.engine import CAPABILITIES, MooncakeEngine
from pd_mooncake.library import NativeSettings, check_environment, load
from pd_mooncake.protocol import RULES, SWITCHES, Machine, choose, effective, forbidden
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
from pdcore.model import AuxTransport, Device, DeviceKind

ENGINE_TIMEOUT = 30.0
_TAKEN_BY = {
    "device": (Protocol.RDMA, Protocol.EFA),
    "npu_id": (Protocol.ASCEND,),
    "custom_mem_pool": tuple(p for p in Protocol if p is not Protocol.TCP),
}


def facts() -> Mapping[str, str]:
    """Tell what is installed and which devices there are."""
    machine = Machine.here()
    forced = {name: os.environ[name] for name in SWITCHES if name in os.environ}
    build, several = machine.build, "; they overwrite each other: pip uninstall all but one"
    return {
        "wheel": (", ".join(build.distributions) or "none")
        + (several if len(build.distributions) > 1 else ""),
        "build": ", ".join(sorted(build.flags)) or "no SUPPORT_ flag",
        "missing libraries": ", ".join(build.missing) or "none",
        **{rule.device: ", ".join(machine.devices[p]) or "none" for p, rule in RULES.items() if rule.device},
        **{name: f"{value!r}: counts as set whatever its value" for name, value in forced.items()},
    }


def _variant(protocol: Protocol) -> Variant:
    rule = RULES[protocol]
    unused = {name: f"{protocol.value} does not use it" for name, p in _TAKEN_BY.items() if protocol not in p}
    return Variant(
        rule.variant,
        protocol.value,
        environment={**({rule.switch: "1"} if rule.switch else {}), VARIABLES["protocol"]: protocol.value},
        forbidden_environment=forbidden(protocol),
        forbidden_options={"protocol": "the variant is the protocol", **unused},
    )


@hookimpl
def pd_backend() -> BackendSpec:
    """Declare the backend and its variants."""
    return BackendSpec(
        name="mooncake",
        summary="the Mooncake transfer engine",
        runs_on="CPU, CUDA, EFA and Ascend builds of Mooncake",
        protocols=tuple(protocol.value for protocol in Protocol),
        capabilities=CAPABILITIES,
        variants=tuple(map(_variant, RULES)),
        options=MooncakeOptions,
        probe=probe,
        facts=facts,
        engine_version=engine_version,
    )


@hookimpl
def pd_choose_protocol(request: ProtocolRequest) -> ProtocolChoice:
    """Choose by option, MOONCAKE_PROTOCOL and machine; what the engine would not do is refused."""
    options, variant = _options(request.options, request.environment), request.variant
    check_environment(request.environment)
    candidates = (Protocol(variant.protocol),) if variant else tuple(Protocol)
    return choose(options.protocol, candidates, device_for(options), Machine.here(), request.environment)


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    """Load the library and start an engine; it must tell its peers the protocol that was chosen."""
    options, protocol = _options(request.options, os.environ), Protocol(request.protocol)
    MooncakeEngine.refuse_inherited("the Mooncake library")
    library = load(options.load_variables, request.host)
    settings = NativeSettings(
        request.host,
        protocol.value,
        device_for(options),
        options.transfer_timeout or ENGINE_TIMEOUT,
        _npu(options) if protocol is Protocol.ASCEND else None,
    )
    engine = MooncakeEngine(library, settings, effective(protocol, None))
    engine.effective_transport = effective(protocol, library.announced)
    return engine


@hookimpl
def pd_aux_transport(request: AuxRequest) -> AuxRoute:
    """Send aux rows through the engine, except from pools whose engine cannot reach host memory."""
    options = _options(request.options, os.environ)
    if options.send_aux_tcp or options.custom_mem_pool in (MemPool.NVLINK, MemPool.BAREX):
        return AuxRoute(AuxTransport.TCP)
    within = request.protocol == Protocol.INTRA_NVLINK.value
    if within or options.custom_mem_pool is MemPool.INTRA_NODE_NVLINK:
        return AuxRoute(AuxTransport.ENGINE, Device(DeviceKind.CUDA, options.gpu_id))
    if request.protocol == Protocol.ASCEND.value:
        return AuxRoute(AuxTransport.ENGINE, Device(DeviceKind.NPU, _npu(options)))
    return AuxRoute(AuxTransport.ENGINE)


def _options(options: object, environ: Mapping[str, str]) -> MooncakeOptions:
    assert isinstance(options, MooncakeOptions)
    return with_environment(options, environ)


def _npu(options: MooncakeOptions) -> int:
    return options.gpu_id if options.npu_id is None else options.npu_id


if TYPE_CHECKING:
    import pd_mooncake.plugin as this

    _checked: RequiredHooks = this
