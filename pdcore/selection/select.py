"""A name becomes a backend, or an error that lists every installed one and why not."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence

import attrs

from pdcore.arguments import instance, named
from pdcore.checks.scalars import shown
from pdcore.config.records import Config
from pdcore.config.sources import LoadedConfig, Origin, OriginKind
from pdcore.config.structuring import nearest
from pdcore.contract.backend import (
    AuxRequest,
    AuxRoute,
    BackendSpec,
    InitEngineRequest,
    ProtocolChoice,
    StatePlan,
    StateRequest,
    Variant,
)
from pdcore.contract.engine import TransferEngine
from pdcore.errors import (
    ArgumentError,
    ConfigError,
    ConfigProblem,
    ContractError,
    PluginError,
    SelectionError,
    SelectionRow,
    VariantConflictError,
)
from pdcore.events import Subscriber
from pdcore.model import AuxTransport, Deadline, DeviceKind, Incarnation, PeerIdentity, Role
from pdcore.selection.assessment import Assessment, assess, problem_of
from pdcore.selection.discovery import Candidate, Problem, discover
from pdcore.selection.engine_start import start_engine
from pdcore.selection.plugins import BackendPlugin, Observer, describe, load_observer

__all__ = ["Backend", "explain", "load_observers", "select"]

ENGINE_VERSION_CHARACTERS = 200

log = logging.getLogger("pdcore.observers")


@attrs.frozen
class Backend:
    """A backend that was selected and can run here: what the managers ask."""

    name: str
    distribution: str
    spec: BackendSpec
    variant: Variant | None
    options: object
    choice: ProtocolChoice
    _plugin: BackendPlugin = attrs.field(repr=False, eq=False)

    @property
    def protocol(self) -> str:
        """The protocol that the engine is asked for."""
        assert self.choice.protocol is not None  # a backend without one is not selected
        return self.choice.protocol

    def start_engine(
        self,
        *,
        role: Role,
        incarnation: Incarnation,
        host: str,
        deadline: Deadline,
        require_transport: str | None = None,
    ) -> TransferEngine:
        """Start an engine, with the variant's environment set as long as it starts.

        Raises:
            EngineError: it failed to start, or did not before the deadline.
            TransportMismatchError: it is not known to run on ``require_transport``; it is closed.
            ContractError: the backend returned something else.
        """
        request = InitEngineRequest(
            role, incarnation, self.protocol, self.variant, self.options, host, deadline
        )
        return start_engine(self._plugin, self.name, request, require_transport)

    def engine_version(self) -> str:
        """Return the name and version of the engine's library, or "" if the backend does not tell."""
        try:
            return str(self.spec.engine_version())[:ENGINE_VERSION_CHARACTERS]
        except Exception as error:  # it is only told to others
            log.warning("backend %r cannot tell its engine's version: %s", self.name, describe(error))
            return ""

    def aux_route(self, engine: TransferEngine) -> AuxRoute:
        """Return how aux rows travel with this engine.

        Raises:
            ContractError: TCP from memory that is not the host's, or through an engine that cannot.
        """
        route = self._plugin.aux_transport(
            AuxRequest(self.protocol, self.variant, self.options, engine.capabilities)
        )
        if route.transport is AuxTransport.TCP and route.device.kind is not DeviceKind.CPU:
            raise self._plugin.broken(
                "its pd_aux_transport wants aux over TCP from device memory",
                f"aux buffers on {route.device}, which TCP cannot read",
            )
        if route.transport is AuxTransport.ENGINE and not engine.capabilities.aux:
            raise self._plugin.broken(
                "its pd_aux_transport wants aux through the engine", "the engine's capabilities say aux=False"
            )
        return route

    def state_plan(self, request: StateRequest) -> StatePlan | None:
        """Return the backend's plan for a state component; None means as pdcore does it by itself."""
        return self._plugin.transfer_state(request)

    def heartbeat_success(self, peer: PeerIdentity) -> None:
        """Tell backend and observers that a peer answered."""
        self._plugin.heartbeat_success(peer)

    def subscribers(self) -> tuple[Subscriber, ...]:
        """Return who among backend and observers wants the managers' events."""
        return (self._plugin.event,) if self._plugin.hears_events else ()


def select(
    name: str | Config | LoadedConfig,
    options: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    origins: Mapping[str, Origin] | None = None,
) -> Backend:
    """Return the backend of this name, ready to start engines. No engine is started here.

    Args:
        name: a name from an entry point, of a backend or of one of its variants; or a configuration that
            names one, with its options: then nothing else says which.
        options: the backend's own options, by name; None with a configuration.
        environ: what the user's environment says, ``os.environ`` by default.
        origins: as in ``LoadedConfig.origins``, so that errors can say where an option was set.

    Raises:
        SelectionError: it is unknown or cannot run here; lists every installed backend and why (not).
        VariantConflictError: the environment or an option contradicts the variant.
        ConfigError: an option is wrong, or the configuration names no backend.
        ContractError: the backend answers a hook wrongly.
        ArgumentError: the name is no text and no configuration, the options are no mapping, or beside a
            configuration there are some.
    """
    if isinstance(name, LoadedConfig):
        origins, name = name.origins if origins is None else origins, name.config
    if isinstance(name, Config):
        name, options = _configured(name, options)
    instance(
        "the name of a backend", name, str, "hand in its name, such as 'local': pdcore backends lists them"
    )
    given = {} if options is None else options
    named("the options of a backend", given)
    for what, values in (("the environment of a backend", environ), ("the origins of options", origins)):
        if values is not None:
            named(what, values)
    environ = dict(os.environ if environ is None else environ)
    discovery = discover(environ)
    claimants = sorted((c for c in discovery.backends if c.name == name), key=lambda c: c.problem is not None)
    verdicts: list[tuple[Candidate, Problem | None]] = []
    if claimants:
        observers, _ = load_observers(discovery.observers)
        found = assess(claimants[0], observers, options, environ=environ, origins=origins)
        if found.problem is None:
            return _backend(found)
        if isinstance(found.error, (VariantConflictError, ConfigError, ContractError)):
            raise found.error
        verdicts = [(found.candidate, found.problem)]
    others = (assess(c, environ=environ) for c in discovery.backends if c not in claimants[:1])
    verdicts += [(other.candidate, other.problem) for other in others]
    raise explain(name, verdicts)


def _configured(config: Config, options: Mapping[str, object] | None) -> tuple[str, Mapping[str, object]]:
    """Return the name and the options of the backend that a configuration asks for."""
    if options is not None:
        raise ArgumentError(
            "the options of a backend are named twice",
            f"{shown(options)}, and a configuration with backend_options",
            "put them into the configuration's backend_options, or select by name",
        )
    if config.backend is None:
        reason = "must be named where a configuration selects: set PDCORE_BACKEND, or select one by its name"
        raise ConfigError([ConfigProblem("backend", OriginKind.DEFAULT.value, reason)])
    return config.backend, config.backend_options


def _backend(found: Assessment) -> Backend:
    assert found.plugin is not None  # an assessment without a problem knows all three
    assert found.spec is not None
    assert found.choice is not None
    name, distribution = found.candidate.name, found.candidate.distribution
    return Backend(name, distribution, found.spec, found.variant, found.options, found.choice, found.plugin)


def explain(name: str, verdicts: Sequence[tuple[Candidate, Problem | None]]) -> SelectionError:
    """Return the error that says why ``name`` cannot be selected, given every candidate's verdict.

    A candidate without a problem is ready. The first candidate of that name is the one meant.
    """
    meant = next(((candidate, problem) for candidate, problem in verdicts if candidate.name == name), None)
    project = meant[0].project if meant else ""
    rows = [
        SelectionRow(candidate.name, candidate.distribution, problem.reason if problem else "ready")
        for candidate, problem in sorted(
            verdicts, key=lambda v: (v[0].name != name, v[0].project != project, v[0].name)
        )
    ]
    if meant is None or meant[1] is None:
        hint = nearest(name, [candidate.name for candidate, _ in verdicts]).lstrip("; ")
        install = f"pip install the distribution that registers {name!r}, by custom pd-{name.split('_')[0]}"
        return SelectionError(f"no backend is named {name!r}", rows, hint or install, "pdcore backends")
    return SelectionError(
        f"backend {name!r} is installed but cannot run here", rows, meant[1].fix, f"pdcore doctor {name}"
    )


def load_observers(
    candidates: Iterable[Candidate],
) -> tuple[tuple[Observer, ...], tuple[tuple[Candidate, Problem | None], ...]]:
    """Load all observers that can be; return them and every candidate's verdict. Failures are logged."""
    observers: list[Observer] = []
    verdicts: list[tuple[Candidate, Problem | None]] = []
    for candidate in candidates:
        loaded = candidate.problem or _load_observer(candidate)
        if isinstance(loaded, Observer):
            observers.append(loaded)
        else:
            log.warning("observer %r is left out: %s", candidate.name, loaded.reason)
        verdicts.append((candidate, loaded if isinstance(loaded, Problem) else None))
    return tuple(observers), tuple(verdicts)


def _load_observer(candidate: Candidate) -> Observer | Problem:
    try:
        return load_observer(candidate)
    except PluginError as error:
        return problem_of(error)
