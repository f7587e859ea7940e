"""What a backend declares about itself and answers to the hooks: frozen records, no behaviour."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.config.records import TransferModel
from pdcore.contract.engine import EngineCapabilities
from pdcore.contract.regions import WriteBatch
from pdcore.layout.kv import Attention, StateComponent
from pdcore.model import CPU, AuxTransport, Deadline, Device, Incarnation, Role
from pdcore.pairing.topology import Topology

__all__ = [
    "CONTRACT_VERSION",
    "AuxRequest",
    "AuxRoute",
    "BackendSpec",
    "InitEngineRequest",
    "NoOptions",
    "ProtocolChoice",
    "ProtocolRequest",
    "ProtocolVerdict",
    "Readiness",
    "StateCopier",
    "StatePlan",
    "StateRequest",
    "Variant",
]

CONTRACT_VERSION = 1
"""The version of the hook contract that this pdcore speaks; a backend declares the one it was written for."""


@attrs.frozen
class Readiness:
    """Whether a backend can run on this machine; ``reason`` and ``fix`` are set if it cannot."""

    ready: bool
    reason: str = ""
    fix: str = ""

    @classmethod
    def yes(cls) -> Readiness:
        """Return the verdict that the backend can run."""
        return cls(True)

    @classmethod
    def no(cls, reason: str, fix: str) -> Readiness:
        """Return the verdict that it cannot, with the reason and the command that helps."""
        return cls(False, reason, fix)


@attrs.frozen
class NoOptions:
    """The options of a backend that has none."""


@attrs.frozen
class Variant:
    """A named way to run a backend: it owns all its switches.

    ``protocol`` is asked of the engine. ``environment`` holds the variables that the variant sets
    while the engine starts; None clears one. A user's different value for any of them is a
    conflict, and so is any of ``forbidden_environment`` and ``forbidden_options`` (name -> why).
    ``defaults`` are option values that the user may override.
    """

    name: str
    protocol: str
    environment: Mapping[str, str | None] = attrs.field(factory=dict)
    forbidden_environment: Mapping[str, str] = attrs.field(factory=dict)
    forbidden_options: Mapping[str, str] = attrs.field(factory=dict)
    defaults: Mapping[str, object] = attrs.field(factory=dict)


@attrs.frozen
class BackendSpec:
    """What ``pd_backend`` returns: everything that is known without starting an engine.

    ``protocols`` are the wire protocols the engine can be asked for, the default first.
    ``options`` is an attrs class that the user's ``backend_options`` are structured into.
    ``probe`` looks whether the engine library can be imported and what it misses; it runs when
    the backend is selected or diagnosed, and must not start an engine. ``facts`` (by title) are
    shown to who diagnoses the backend, whether it is ready or not. ``transfer_model`` is used unless the
    configuration asks for one. ``engine_version`` tells the engine library's name and version, which
    peers are told.
    """

    name: str
    summary: str
    runs_on: str
    protocols: tuple[str, ...]
    capabilities: EngineCapabilities
    contract_version: int = CONTRACT_VERSION
    variants: tuple[Variant, ...] = ()
    options: type = NoOptions
    probe: Callable[[], Readiness] = attrs.field(default=Readiness.yes, repr=False, eq=False)
    facts: Callable[[], Mapping[str, str]] = attrs.field(default=dict, repr=False, eq=False)
    transfer_model: TransferModel = TransferModel.WORKERS
    engine_version: Callable[[], str] = attrs.field(default=str, repr=False, eq=False)


@attrs.frozen
class ProtocolRequest:
    """Asks which protocol the engine shall be started with.

    ``variant`` is None when the backend was selected by its own name; ``options`` is an instance
    of the spec's options class; ``environment`` is what the engine will see.
    """

    spec: BackendSpec
    variant: Variant | None
    options: object
    environment: Mapping[str, str]


@attrs.frozen
class ProtocolVerdict:
    """One protocol, whether it can be used here, and why (not)."""

    protocol: str
    usable: bool
    reason: str


@attrs.frozen
class ProtocolChoice:
    """The chosen protocol (None: none can be used) and a verdict for every candidate.

    The first verdict is the one on what was wanted; ``fix`` says what to do when it cannot be.
    """

    protocol: str | None
    verdicts: tuple[ProtocolVerdict, ...]
    fix: str = ""

    @classmethod
    def by_name(
        cls, request: ProtocolRequest, *, ground: str, refused: str = "", fix: str = ""
    ) -> ProtocolChoice:
        """Return the choice of a backend whose protocols are chosen by its names.

        The selected variant's protocol is wanted; by the backend's own name, the first that the spec lists.

        Args:
            request: what was asked.
            ground: why it can be used.
            refused: why it cannot be, or "".
            fix: what to do if it cannot be.
        """
        wanted = request.variant.protocol if request.variant else request.spec.protocols[0]
        others = () if request.variant else request.spec.variants
        verdicts = [ProtocolVerdict(wanted, not refused, refused or ground)]
        verdicts += [ProtocolVerdict(v.protocol, False, f"only by its name, {v.name}") for v in others]
        return cls(None if refused else wanted, tuple(verdicts), fix if refused else "")


@attrs.frozen
class InitEngineRequest:
    """Asks for a started engine. ``host`` is the address that peers reach this machine by."""

    role: Role
    incarnation: Incarnation
    protocol: str
    variant: Variant | None
    options: object
    host: str
    deadline: Deadline


@attrs.frozen
class AuxRequest:
    """Asks how aux rows travel, for an engine that was started with these options."""

    protocol: str
    variant: Variant | None
    options: object
    capabilities: EngineCapabilities


@attrs.frozen
class AuxRoute:
    """How aux rows travel, and on which device the aux buffers must lie.

    TCP aux needs host memory: pdcore refuses TCP with a device when a manager starts.
    """

    transport: AuxTransport = AuxTransport.TCP
    device: Device = CPU


@attrs.frozen
class StateRequest:
    """Asks, at pairing, how one state component is copied.

    ``local_regions`` and ``remote_regions`` are the engine region indices of the component's
    buffers on either side, in the order of its ``buffers``; buffers are one another's by name. The
    topologies are those of the prefill and of the decode rank; ``attention`` is that of the KV cache.
    """

    local: StateComponent
    remote: StateComponent
    local_regions: tuple[int, ...]
    remote_regions: tuple[int, ...]
    local_topology: Topology
    remote_topology: Topology
    attention: Attention


StateCopier = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], WriteBatch]
"""Local and remote item indices of one request -> the copies."""


@attrs.frozen
class StatePlan:
    """Either ``copier``, called once per request, or the reason why the component is refused.

    A prefill rank that has nothing to send to this decode rank answers with a copier of nothing.
    """

    copier: StateCopier | None = None
    refusal: str = ""
