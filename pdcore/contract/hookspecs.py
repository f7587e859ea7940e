"""The hooks of a backend, and the guide for who writes one.

A backend is a module named by an entry point in the group ``pdcore.backends``. It decorates plain
functions with :data:`hookimpl`; a function may leave out arguments that it doesn't need. The module
must not import its engine library at the top: import it inside ``probe`` and ``pd_init_engine``.

Two hooks are required (:class:`RequiredHooks`), the others have defaults: returning None, or not
implementing a hook, means "use the default". Hooks run when a manager starts or pairs, never on the
transfer path, but for ``pd_event``, which costs nothing where nobody implements it. To have mypy check
a module against the contract, end it with::

    if TYPE_CHECKING:
        import pd_example.plugin as this
        _checked: RequiredHooks = this

Observers (entry points in the group ``pdcore.observers``) implement any of the same hooks to be told;
what they return is ignored, and one that raises is logged and never stops a transfer.
"""

from __future__ import annotations

from typing import Protocol

import pluggy

from pdcore.contract.backend import (
    AuxRequest,
    AuxRoute,
    BackendSpec,
    InitEngineRequest,
    ProtocolChoice,
    ProtocolRequest,
    StatePlan,
    StateRequest,
)
from pdcore.contract.engine import TransferEngine
from pdcore.events import Event
from pdcore.model import PeerIdentity

__all__ = ["BACKEND_GROUP", "OBSERVER_GROUP", "PROJECT", "BackendHooks", "RequiredHooks", "hookimpl"]

PROJECT = "pdcore"
BACKEND_GROUP = "pdcore.backends"
OBSERVER_GROUP = "pdcore.observers"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin module as the implementation of the hook of the same name."""


class RequiredHooks(Protocol):
    """What every backend module implements."""

    @hookspec(firstresult=True)
    def pd_backend(self) -> BackendSpec:
        """Declare the backend: names, variants, capabilities, options, probe. Called at selection.

        Must not import the engine library.
        """
        ...

    @hookspec(firstresult=True)
    def pd_init_engine(self, request: InitEngineRequest) -> TransferEngine:
        """Build and start the engine within ``request.deadline`` and return it.

        ``capabilities`` and ``effective_transport`` of the result must tell the truth: a protocol
        string is a request, not a fact.

        Raises:
            EngineError: the engine cannot start; map the engine's own exceptions to it.
        """
        ...


class BackendHooks(RequiredHooks, Protocol):
    """All hooks. Those not in :class:`RequiredHooks` are optional."""

    @hookspec(firstresult=True)
    def pd_choose_protocol(self, request: ProtocolRequest) -> ProtocolChoice | None:
        """Choose the wire protocol that the engine is asked for, before any engine starts.

        Look at the machine, not only at the options: many engines accept anything and fall back
        silently. Give a verdict with a reason for every candidate.
        Default: the variant's protocol, else the only protocol declared.
        """
        ...

    @hookspec(firstresult=True)
    def pd_aux_transport(self, request: AuxRequest) -> AuxRoute | None:
        """Say how aux rows travel and on which device their buffers must be.

        Default: TCP, host memory.
        """
        ...

    @hookspec(firstresult=True)
    def pd_transfer_state(self, request: StateRequest) -> StatePlan | None:
        """Say at pairing how one state component is copied, or refuse it with a reason.

        The request has both ranks' topologies: several prefill ranks may have to send to one decode
        rank, or only one of several that hold the same. Default: whole items between equal TP sizes;
        between others what the two ranks share, where the buffers say how they are sliced.
        """
        ...

    @hookspec
    def pd_heartbeat_success(self, peer: PeerIdentity) -> None:
        """A peer answered a heartbeat: clear or re-probe what is kept about it. Default: nothing."""
        ...

    @hookspec
    def pd_event(self, event: Event) -> None:
        """Something happened in a manager (:mod:`pdcore.events`). Default: nothing.

        Called on the thread where it happens, also on the transfer path: be quick, and ready for several
        threads. Made for observers; a manager's ``subscribe`` serves programs.
        """
        ...
