"""The hooks of the NIXL backend."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pd_nixl.build import creation_refusal, engine_version, look, probe
from pd_nixl.config import (
    NixlOptions,
    Protocol,
    backend_params,
    efa_devices,
    native_environment,
    tcp_transports,
    ucx_settings,
)
from pd_nixl.engine import CAPABILITIES, NixlEngine
from pd_nixl.library import load
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
from pdcore.model import AuxTransport, Certainty, EffectiveTransport
from pdcore.selection.environment import environment_set

LOCAL_ONLY = {"shm", "sm", "posix", "sysv", "cma", "knem", "xpmem", "self"}
"""UCX's transports within a host: none notices that a peer died, so UCX refuses them alone."""
OF_UCX = dict.fromkeys(("num_workers", "device_list", "engine_config", "error_handling"), "only UCX takes it")
NO_PEERS = "NIXL's POSIX is a file backend: it has no peers and no notifications"
UCX_FIX = "correct what UCX_ variables and options ask for; pdcore doctor nixl shows them"
LIBFABRIC_FIX = "install libfabric 1.21 or later, libhwloc and the CUDA runtime, or select nixl"
HOW = {
    Protocol.UCX: "the agent has no other backend; UCX chooses its transports by peer",
    Protocol.TCP: "UCX_TLS left UCX, the agent's only backend, nothing but TCP between processes",
    Protocol.LIBFABRIC: "the agent has no other backend; it does not tell libfabric's provider",
}


def facts() -> Mapping[str, str]:
    """Tell what is installed, and which of NIXL's plugins can be created."""
    found = look()
    read = {name: value for name, value in os.environ.items() if name.startswith(("UCX_", "NIXL_"))}
    told = {
        "wheel": ", ".join(found.distributions) or "none",
        "optional libraries missing": ", ".join(found.missing) or "none",
        "EFA devices": ", ".join(efa_devices()) or "none",
        **dict(sorted((read | native_environment(NixlOptions(), read)).items())),
    }
    for protocol in () if found.error else (Protocol.UCX, Protocol.LIBFABRIC, Protocol.POSIX):
        told[f"plugin {protocol.plugin}"] = _refusal(protocol, NixlOptions(), os.environ) or "can be created"
    return told


@hookimpl
def pd_backend() -> BackendSpec:
    """Declare the backend and its variants."""
    return BackendSpec(
        name="nixl",
        summary="NIXL, over UCX or libfabric",
        runs_on="CPU and CUDA memory",
        protocols=tuple(protocol.value for protocol in Protocol),
        capabilities=CAPABILITIES,
        variants=(
            Variant(
                "nixl_tcp",
                Protocol.TCP.value,
                environment={"UCX_TLS": tcp_transports()},
                forbidden_options={"device_list": "it names RDMA devices; UCX_NET_DEVICES names interfaces"},
            ),
            Variant("nixl_libfabric", Protocol.LIBFABRIC.value, forbidden_options=OF_UCX),
            Variant("nixl_posix", Protocol.POSIX.value),
        ),
        options=NixlOptions,
        probe=probe,
        facts=facts,
        engine_version=engine_version,
    )


@hookimpl
def pd_choose_protocol(request: ProtocolRequest) -> ProtocolChoice:
    """The name is the protocol; its NIXL plugin must have been created, in another process."""
    wanted = Protocol(request.variant.protocol) if request.variant else Protocol.UCX
    refused, fix = _objection(wanted, _options(request.options), request.environment)
    ground = f"the NIXL plugin {wanted.plugin} can be created"
    return ProtocolChoice.by_name(request, ground=ground, refused=refused, fix=fix)


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    """Load the library and start an engine, with what NIXL and UCX read just then in the environment."""
    options, protocol = _options(request.options), Protocol(request.protocol)
    transport = EffectiveTransport(protocol.value, Certainty.INFERRED, HOW[protocol])
    NixlEngine.refuse_inherited("NIXL")
    with environment_set(native_environment(options, os.environ)):
        library = load(options)
        return NixlEngine(library, protocol.plugin, backend_params(options, protocol), transport)


@hookimpl
def pd_aux_transport(request: AuxRequest) -> AuxRoute:
    """Send aux rows through the engine, from host memory."""
    return AuxRoute(AuxTransport.ENGINE)


def _objection(protocol: Protocol, options: NixlOptions, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return why a protocol cannot be used here, or "", and what to do if not."""
    if protocol is Protocol.POSIX:
        return NO_PEERS, "select nixl, nixl_tcp or nixl_libfabric"
    if protocol.plugin == "UCX":
        transports = environ.get("UCX_TLS", "").split(",")
        if set(transports) <= LOCAL_ONLY:
            within = f"UCX_TLS={environ['UCX_TLS']} has only transports within a host"
            return f"{within}, which notice no lost peer", "unset UCX_TLS, or add tcp to it"
        given = {f"UCX_{key}": value for key, value in ucx_settings(options).items()}
        if options.device_list:
            given["UCX_NET_DEVICES"] = options.device_list
        ruled = {name: value for name, value in given.items() if environ.get(name, value) != value}
        if ruled:
            sides = [f"{name}={environ[name]} keeps {value} from being used" for name, value in ruled.items()]
            return "; ".join(sides), f"unset {' '.join(ruled)}, or take it out of the options"
    refused = _refusal(protocol, options, environ)
    return refused, UCX_FIX if protocol.plugin == "UCX" else LIBFABRIC_FIX


def _refusal(protocol: Protocol, options: NixlOptions, environ: Mapping[str, str]) -> str:
    settings = ucx_settings(options) if protocol.plugin == "UCX" else {}
    complete = {**environ, **native_environment(options, environ)}
    return creation_refusal(protocol.plugin, backend_params(options, protocol), settings, complete)


def _options(options: object) -> NixlOptions:
    assert isinstance(options, NixlOptions)
    return options


if TYPE_CHECKING:
    import pd_nixl.plugin as this

    _checked: RequiredHooks = this
