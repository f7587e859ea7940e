"""An engine made ready for one rank: started, fit for the configuration, and with its memory registered."""

from __future__ import annotations

import attrs

from pdcore.config.records import Config, TransferModel
from pdcore.contract.backend import AuxRoute, BackendSpec
from pdcore.contract.engine import TransferEngine
from pdcore.errors import ConfigError, ConfigProblem, LayoutError
from pdcore.events import EngineStarted, Events, Stage, stage
from pdcore.host.machine import HostPlace, find_place
from pdcore.host.shortage import require_descriptors
from pdcore.memory.digest import require_digestible
from pdcore.memory.pools import Pools
from pdcore.memory.staging import StagingMemory, staging_memory
from pdcore.model import CPU, AuxTransport, Deadline, Role
from pdcore.selection.select import Backend
from pdcore.wire import require_curve

__all__ = ["ReadyEngine", "find_footing", "ready_engine"]

CONTROL_DESCRIPTORS = 24
"""What the control channel, its first connections and the bootstrap client take."""


@attrs.frozen
class ReadyEngine:
    """A started engine, the export of its registered regions, how aux rows may travel (the preferred way
    first), whether ``send`` itself submits to it, and the slots for packed bytes, if there are any.
    """

    engine: TransferEngine
    regions: bytes
    aux_transports: tuple[AuxTransport, ...]
    inline: bool
    staging: StagingMemory | None


def find_footing(role: Role, spec: BackendSpec, config: Config) -> HostPlace:
    """Return where a manager stands, once it is clear that it can begin at all.

    Raises:
        EngineError: too few file descriptors are free.
        AddressError: the configured host is not an address of this machine, or none that peers can be told.
        ConfigError: there is a key, and libzmq lacks CURVE.
    """
    needed = CONTROL_DESCRIPTORS + spec.capabilities.descriptors
    require_descriptors(needed, f"to start the {role.value} manager")
    place = find_place(config.host, config.advertise)
    require_curve(config.auth_key)
    return place


def ready_engine(
    role: Role, backend: Backend, pools: Pools, config: Config, place: HostPlace, events: Events
) -> ReadyEngine:
    """Start the engine of one rank and register the pools; what fails leaves no engine behind.

    Raises:
        EngineError, RegistrationError, TransportMismatchError: the engine does not start as asked.
        ConfigError: the configuration asks for what this engine cannot do.
        LayoutError: aux over TCP with aux buffers on a device, or there is no memory for staging rings.
    """
    with stage(events, Stage.ENGINE_START):
        engine = backend.start_engine(
            role=role,
            incarnation=events.node.incarnation,
            host=place.advertised,
            deadline=Deadline.after(config.timeouts.engine_start),
            require_transport=config.require_transport,
        )
    if events.on:
        events.emit(EngineStarted(events.node, engine.effective_transport))
    try:
        ways = _aux_transports(backend.aux_route(engine), engine, pools, config)
        inline = _is_inline(role, backend, engine, config)
        require_digestible(config.transfer.verify, pools.regions)
        staging = staging_memory(config, engine.capabilities, pools)
        slots = [staging.region] if staging is not None else []
        with stage(events, Stage.REGISTER_MEMORY):
            regions = engine.register([*pools.regions, *slots])
    except BaseException:
        engine.close()
        raise
    return ReadyEngine(engine, regions, ways, inline, staging)


def _aux_transports(
    route: AuxRoute, engine: TransferEngine, pools: Pools, config: Config
) -> tuple[AuxTransport, ...]:
    wanted = config.transfer.aux
    if wanted == "engine" and not engine.capabilities.aux:
        problem = ConfigProblem(
            "transfer.aux",
            "configuration",
            "the backend's engine does not carry aux rows; use tcp or auto",
        )
        raise ConfigError([problem])
    if wanted != "auto":
        route = AuxRoute(AuxTransport(wanted), CPU if wanted == "tcp" else route.device)
    lies_on = pools.aux.device if pools.aux is not None else route.device
    if lies_on != route.device:
        raise LayoutError(
            "the aux buffers are not where they are needed",
            f"they lie on {lies_on}; aux over {route.transport.value} takes them on {route.device}",
            f"make them with MetadataBuffers(device={route.device!r}) or of fields that lie there, or set "
            "transfer.aux",
        )
    fallback = wanted == "auto" and route.transport is AuxTransport.ENGINE and lies_on == CPU
    return (route.transport, AuxTransport.TCP) if fallback else (route.transport,)


def _is_inline(role: Role, backend: Backend, engine: TransferEngine, config: Config) -> bool:
    inline = (config.transfer.model or backend.spec.transfer_model) is TransferModel.INLINE
    if inline and role is Role.PREFILL and not engine.capabilities.asynchronous:
        problem = ConfigProblem(
            "transfer.model",
            "configuration",
            "inline needs an engine that submits asynchronously, and this one copies inside write(); "
            "use workers",
        )
        raise ConfigError([problem])
    return inline
