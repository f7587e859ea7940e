"""The typed façade over pluggy: the only place where hooks are registered and called.

One manager holds pdcore's defaults, one backend, and the observers. pluggy asks the last registered
first, so that observers are told, the backend answers, and the defaults fill in for None.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from types import ModuleType
from typing import TypeVar

import pluggy

from pdcore.config.structuring import nearest
from pdcore.contract.backend import (
    AuxRequest,
    AuxRoute,
    BackendSpec,
    InitEngineRequest,
    ProtocolChoice,
    ProtocolRequest,
    ProtocolVerdict,
    StatePlan,
    StateRequest,
)
from pdcore.contract.engine import TransferEngine
from pdcore.contract.hookspecs import PROJECT, BackendHooks, RequiredHooks, hookimpl
from pdcore.errors import ContractError, PDCoreError, PluginError
from pdcore.events import Event
from pdcore.model import PeerIdentity
from pdcore.selection.discovery import Candidate

__all__ = ["BackendPlugin", "Observer", "describe", "load_backend", "load_observer"]

T = TypeVar("T")

REQUIRED = tuple(name for name in vars(RequiredHooks) if name.startswith("pd_"))

log = logging.getLogger("pdcore.observers")


class BackendPlugin:
    """The hooks of one backend as typed methods; every answer's type is checked.

    Each method raises ContractError if the hook raises or returns anything but what is declared;
    errors of pdcore's own kind pass through.
    """

    def __init__(self, candidate: Candidate, module: ModuleType, observers: Sequence[Observer]) -> None:
        self._distribution = candidate.distribution
        self._project = candidate.project
        manager = _manager()
        manager.register(_Defaults(), "defaults")
        manager.register(module, candidate.name)
        for observer in observers:
            manager.register(observer)
        self._hooks = manager.hook
        self.hears_events = hasattr(module, "pd_event") or any(o.hears_events for o in observers)

    def backend(self) -> BackendSpec:
        """Return what the backend declares about itself."""
        return self._due("pd_backend", BackendSpec, self._call("pd_backend"))

    def choose_protocol(self, request: ProtocolRequest) -> ProtocolChoice:
        """Return which protocol the engine is asked for, with all verdicts."""
        answer = self._call("pd_choose_protocol", request=request)
        return self._due("pd_choose_protocol", ProtocolChoice, answer)

    def init_engine(self, request: InitEngineRequest) -> TransferEngine:
        """Return a started engine."""
        engine = self._call("pd_init_engine", request=request)
        if isinstance(engine, TransferEngine):
            return engine
        raise self._wrong_type("pd_init_engine", TransferEngine.__name__, engine)

    def aux_transport(self, request: AuxRequest) -> AuxRoute:
        """Return how aux rows travel."""
        return self._due("pd_aux_transport", AuxRoute, self._call("pd_aux_transport", request=request))

    def transfer_state(self, request: StateRequest) -> StatePlan | None:
        """Return how one state component is copied; None means as pdcore does it by itself."""
        answer = self._call("pd_transfer_state", request=request)
        return None if answer is None else self._due("pd_transfer_state", StatePlan, answer)

    def heartbeat_success(self, peer: PeerIdentity) -> None:
        """Tell that a peer answered."""
        self._call("pd_heartbeat_success", peer=peer)

    def event(self, event: Event) -> None:
        """Hand an event on."""
        self._call("pd_event", event=event)

    def broken(self, happened: str, there_is: str) -> ContractError:
        """Return the error that says how this backend broke the contract."""
        return ContractError(
            f"{self._distribution}: {happened}", there_is, f"report it to the authors of {self._project}"
        )

    def _call(self, hook: str, **arguments: object) -> object:
        try:
            answer: object = getattr(self._hooks, hook)(**arguments)
        except (PDCoreError, KeyboardInterrupt):
            raise
        except BaseException as error:  # SystemExit too: a plugin does not end the process
            raise self.broken(f"its {hook} failed", describe(error)) from error
        return answer

    def _due(self, hook: str, expected: type[T], answer: object) -> T:
        if isinstance(answer, expected):
            return answer
        raise self._wrong_type(hook, expected.__name__, answer)

    def _wrong_type(self, hook: str, expected: str, answer: object) -> ContractError:
        there_is = f"{type(answer).__name__}, where {expected} is due"
        return self.broken(f"its {hook} returned a wrong type", there_is)


class Observer:
    """A module that is told about hook calls; what it returns or raises changes nothing."""

    def __init__(self, candidate: Candidate, module: ModuleType) -> None:
        self._name = candidate.name
        self._logged: set[str] = set()
        manager = _manager()
        manager.register(module, candidate.name)
        self._hooks = manager.hook
        self.hears_events = hasattr(module, "pd_event")

    @hookimpl(tryfirst=True)
    def pd_backend(self) -> None:
        """Pass it on."""
        self._tell("pd_backend")

    @hookimpl(tryfirst=True)
    def pd_choose_protocol(self, request: ProtocolRequest) -> None:
        """Pass it on."""
        self._tell("pd_choose_protocol", request=request)

    @hookimpl(tryfirst=True)
    def pd_init_engine(self, request: InitEngineRequest) -> None:
        """Pass it on."""
        self._tell("pd_init_engine", request=request)

    @hookimpl(tryfirst=True)
    def pd_aux_transport(self, request: AuxRequest) -> None:
        """Pass it on."""
        self._tell("pd_aux_transport", request=request)

    @hookimpl(tryfirst=True)
    def pd_transfer_state(self, request: StateRequest) -> None:
        """Pass it on."""
        self._tell("pd_transfer_state", request=request)

    @hookimpl(tryfirst=True)
    def pd_heartbeat_success(self, peer: PeerIdentity) -> None:
        """Pass it on."""
        self._tell("pd_heartbeat_success", peer=peer)

    @hookimpl(tryfirst=True)
    def pd_event(self, event: Event) -> None:
        """Pass it on."""
        self._tell("pd_event", event=event)

    def _tell(self, hook: str, **arguments: object) -> None:
        try:
            getattr(self._hooks, hook)(**arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: an observer does not end the process
            if hook not in self._logged:
                self._logged.add(hook)
                log.warning(
                    "observer %r failed in %s and is told on nevertheless (logged once): %s",
                    self._name,
                    hook,
                    describe(error),
                    exc_info=error,
                )


def load_backend(candidate: Candidate, observers: Sequence[Observer] = ()) -> BackendPlugin:
    """Import a backend's module and check its hooks.

    Raises:
        PluginError: it cannot be imported, lacks a required hook, or has one that does not fit.
    """
    return BackendPlugin(candidate, _load(candidate, REQUIRED), observers)


def load_observer(candidate: Candidate) -> Observer:
    """Import an observer's module and check its hooks.

    Raises:
        PluginError: it cannot be imported, or has a hook that does not fit.
    """
    return Observer(candidate, _load(candidate, ()))


def describe(error: BaseException) -> str:
    """Return an exception's type and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")


class _Defaults:
    """What holds where neither backend nor observer says otherwise."""

    @hookimpl
    def pd_choose_protocol(self, request: ProtocolRequest) -> ProtocolChoice:
        if request.variant is not None:
            protocol, reason = request.variant.protocol, f"{request.variant.name} is this protocol"
        elif len(request.spec.protocols) == 1:
            protocol, reason = request.spec.protocols[0], "the only one declared"
        else:
            raise ContractError(
                f"backend {request.spec.name!r} does not choose its protocol",
                f"it declares {', '.join(request.spec.protocols) or 'none'}",
                "declare exactly one protocol, or implement pd_choose_protocol",
            )
        return ProtocolChoice(protocol, (ProtocolVerdict(protocol, True, reason),))

    @hookimpl
    def pd_aux_transport(self) -> AuxRoute:
        return AuxRoute()


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(BackendHooks)
    return manager


def _load(candidate: Candidate, required: Sequence[str]) -> ModuleType:
    try:
        module = importlib.import_module(candidate.module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a plugin does not end the process
        raise PluginError(
            f"{candidate.module} cannot be imported",
            describe(error),
            f"pip install --force-reinstall {candidate.project}, "
            f"or see the traceback of: python -c 'import {candidate.module}'",
        ) from error
    misfits = _misfits(module, required)
    if misfits:
        raise PluginError(
            f"{candidate.module} does not fit the hook contract",
            "; ".join(misfits),
            f"pip install --upgrade pdcore {candidate.project}",
        )
    return module


def _misfits(module: ModuleType, required: Sequence[str]) -> list[str]:
    contract = {
        name: set(caller.spec.argnames)
        for name, caller in vars(_manager().hook).items()
        if isinstance(caller, pluggy.HookCaller) and caller.spec is not None
    }
    found = pluggy.PluginManager(PROJECT)
    found.register(module)
    callers = {caller.name: caller for caller in found.get_hookcallers(module) or ()}
    misfits = []
    for name, caller in callers.items():
        for implementation in caller.get_hookimpls():
            surplus = sorted({*implementation.argnames} - contract.get(name, set()))
            if name not in contract:
                misfits.append(f"unknown hook {name}{nearest(name, [*contract])}")
            elif surplus:
                takes = ", ".join(contract[name]) or "no argument"
                misfits.append(f"{name} has a wrong argument {', '.join(surplus)} (it takes: {takes})")
            elif implementation.wrapper or implementation.hookwrapper:
                misfits.append(f"{name} is a wrapper, which would change another plugin's answer")
    misfits += [
        f"{name} is missing (is it decorated with @hookimpl?)" for name in required if name not in callers
    ]
    return misfits
