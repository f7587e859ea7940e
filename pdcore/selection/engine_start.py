"""Starting an engine: within a deadline, in its variant's environment, on the transport that is required."""

from __future__ import annotations

import logging
import threading

from pdcore.contract.backend import InitEngineRequest
from pdcore.contract.engine import EngineCapabilities, TransferEngine
from pdcore.errors import EngineError, TransportMismatchError
from pdcore.model import Certainty, EffectiveTransport
from pdcore.selection.environment import scoped_environment
from pdcore.selection.plugins import BackendPlugin, describe

__all__ = ["start_engine"]

log = logging.getLogger("pdcore.engine_start")


def start_engine(
    plugin: BackendPlugin, name: str, request: InitEngineRequest, require_transport: str | None
) -> TransferEngine:
    """Start an engine and check what it says about itself.

    Raises:
        EngineError: it failed to start, or did not within ``request.deadline``.
        TransportMismatchError: it is not known to run on ``require_transport``; it was closed again.
        ContractError: the hook returned no engine, or one that does not describe itself.
    """
    with scoped_environment(request.variant, request.deadline):
        engine = _Start(plugin, name, request).result()
    try:
        _check_described(plugin, engine)
        if require_transport is not None:
            _check_transport(name, engine.effective_transport, require_transport)
    except BaseException:
        _close(engine)
        raise
    return engine


class _Start:
    """Runs ``pd_init_engine`` in a thread of its own, since an engine's start may hang in native code.

    The thread ends with the hook; an engine that comes too late is closed there.
    """

    def __init__(self, plugin: BackendPlugin, name: str, request: InitEngineRequest) -> None:
        self._plugin, self._name, self._request = plugin, name, request
        self._done = threading.Event()
        self._handover = threading.Lock()  # guards the three below
        self._engine: TransferEngine | None = None
        self._error: BaseException | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name=f"pdcore-engine-start-{name}", daemon=True)

    def result(self) -> TransferEngine:
        """Return the engine, or raise what the hook raised, or EngineError at the deadline."""
        self._thread.start()
        self._done.wait(self._request.deadline.remaining())
        with self._handover:
            engine, error = self._engine, self._error
            self._abandoned = engine is None
        if error is not None:
            raise error
        if engine is None:
            raise EngineError(
                f"the engine of {self._name!r} did not start before its deadline",
                "pd_init_engine has not returned; it goes on in thread " + self._thread.name,
                f"raise timeouts.engine_start, or look for what hangs: pdcore doctor {self._name}",
            )
        return engine

    def _run(self) -> None:
        engine: TransferEngine | None = None
        error: BaseException | None = None
        try:
            engine = self._plugin.init_engine(self._request)
        except BaseException as raised:  # it is raised again in the thread that waits
            error = raised
        with self._handover:
            self._engine, self._error = engine, error
            late = engine if self._abandoned else None
        self._done.set()
        if late is not None:
            log.warning("the engine of %r started after its deadline and is closed again", self._name)
            _close(late)


def _close(engine: TransferEngine) -> None:
    try:
        engine.close()
    except Exception as error:
        log.warning("an engine that was refused could not be closed: %s", describe(error), exc_info=error)


def _check_described(plugin: BackendPlugin, engine: TransferEngine) -> None:
    for attribute, expected in (
        ("capabilities", EngineCapabilities),
        ("effective_transport", EffectiveTransport),
    ):
        value = getattr(engine, attribute, None)
        if not isinstance(value, expected):
            raise plugin.broken(
                f"its engine has no {attribute}", f"{type(value).__name__}, where {expected.__name__} is due"
            )


def _check_transport(name: str, effective: EffectiveTransport, required: str) -> None:
    if effective.name == required and effective.certainty is not Certainty.UNKNOWN:
        return
    raise TransportMismatchError(
        f"the engine of {name!r} is not known to run on {required!r}, which require_transport asks for",
        f"{effective.name!r}, {effective.certainty.value}" + (f" ({effective.how})" if effective.how else ""),
        f"see what keeps it from {required!r} with: pdcore doctor {name}; or drop require_transport",
    )
