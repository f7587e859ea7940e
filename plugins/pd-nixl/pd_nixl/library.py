"""The NIXL library: loaded once per process, and typed as far as it is used."""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import attrs
import numpy as np
import numpy.typing as npt

from pd_nixl.build import INSTALL, modules, refusal
from pd_nixl.config import NixlOptions, native_environment
from pdcore.errors import EngineError
from pdcore.selection.environment import environment_set

__all__ = ["Agent", "Handle", "Library", "Numbers", "Registration", "XferDescs", "load"]

STDOUT_HANDLER = "consoleHandler"
"""The name of the handler by which NIXL's Python logger prints to stdout."""

Descriptors = npt.NDArray[np.uint64]
"""(n, 3): address, bytes, device; or (n, 5), with stride and count."""
Numbers = npt.NDArray[np.int32]
"""(n,): which entries of a prepared list."""


class Handle(Protocol):
    """A transfer or a prepared list: released once, and never used after."""

    def release(self) -> None: ...


class Registration(Protocol):
    """Registered memory, opaque."""


class XferDescs(Protocol):
    """Descriptors of a transfer, opaque."""


class Agent(Protocol):
    """The methods of ``nixl_agent`` that are used; they raise the classes in :attr:`Library.errors`.

    The agent ends when nothing refers to it nor to any of its handles; there is no close.
    """

    def create_backend(self, backend: str, params: dict[str, str], /) -> None: ...
    def register_memory(self, regions: Sequence[tuple[int, int, int, str]], kind: str, /) -> Registration: ...
    def deregister_memory(self, registration: Registration, /) -> None: ...
    def get_agent_metadata(self) -> bytes: ...
    def add_remote_agent(self, metadata: bytes, /) -> bytes: ...
    def remove_remote_agent(self, name: str, /) -> None: ...
    def get_xfer_descs(self, descriptors: Descriptors, kind: str, /) -> XferDescs: ...
    def prep_xfer_dlist(self, name: str, rows: Descriptors, kind: str, /) -> Handle: ...
    def make_prepped_xfer(
        self, operation: str, local: Handle, ours: Numbers, remote: Handle, theirs: Numbers, /
    ) -> Handle: ...
    def initialize_xfer(
        self, operation: str, local: XferDescs, remote: XferDescs, name: str, /
    ) -> Handle: ...
    def transfer(self, handle: Handle, /) -> str: ...
    def check_xfer_state(self, handle: Handle, /) -> str: ...
    def get_new_notifs(self) -> dict[str, list[bytes]]: ...


class _SyncModes(Protocol):
    NIXL_THREAD_SYNC_STRICT: object


class ApiModule(Protocol):
    """The module ``nixl_cu12._api``, or its like."""

    nixl_thread_sync_t: _SyncModes
    nixlBind: object  # noqa: N815 - the library's name

    def nixl_agent_config(
        self, *, enable_prog_thread: bool, backends: Sequence[str], sync_mode: object
    ) -> object: ...
    def nixl_agent(self, agent_name: str, nixl_conf: object) -> Agent: ...


@attrs.frozen
class Library:
    """The loaded library.

    ``errors`` holds its exception classes without their affixes: ``NotFound`` is
    ``nixlNotFoundError``. They have no common base, and every wheel has its own.
    """

    module: ApiModule = attrs.field(repr=False)
    log_level: str
    errors: Mapping[str, type[Exception]] = attrs.field(repr=False)

    @property
    def transport_errors(self) -> tuple[type[Exception], ...]:
        """All classes that the library raises for what it cannot do."""
        return tuple(self.errors.values())

    def agent(self, name: str, backend: str, params: Mapping[str, str]) -> Agent:
        """Return an agent with this one backend, locked against concurrent calls, without threads.

        Raises:
            EngineError: the backend cannot be created.
        """
        # A progress thread would poll without end and keep a core busy: NIXL's Python API has no knob.
        strict = self.module.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        config = self.module.nixl_agent_config(enable_prog_thread=False, backends=[], sync_mode=strict)
        agent = self.module.nixl_agent(name, config)
        try:
            agent.create_backend(backend, dict(params))
        except self.transport_errors as error:
            raise EngineError(
                f"NIXL could not create the backend {backend}",
                f"{type(error).__name__}: {error}; parameters {dict(params)}",
                "look at what it logs (option log_level=INFO), and at pdcore doctor nixl",
            ) from error
        return agent


_loading = threading.Lock()  # guards _library
_library: Library | None = None


def load(options: NixlOptions) -> Library:
    """Load the library into this process.

    Raises:
        EngineError: it is missing, does not load, is of a wrong version, or is loaded already with
            another log level.
    """
    global _library
    variables = native_environment(options, os.environ)
    with _loading:
        if _library is None:
            with environment_set(variables):
                _library = _load(variables["NIXL_LOG_LEVEL"])
        library = _library
    if options.log_level and options.log_level != library.log_level:
        raise EngineError(
            "NIXL is loaded already, and reads its log level only then",
            f"{library.log_level} then, log_level={options.log_level} now",
            "give all managers of a process the same log_level, or start another process",
        )
    return library


def _load(log_level: str) -> Library:
    reasons = []
    for name in modules():
        try:
            module = _import(name)
        except ImportError as error:
            reasons.append(f"{name}: {error}")
            continue
        if misfit := refusal(str(vars(module)["__package__"])):
            raise EngineError("this NIXL cannot be used", misfit, INSTALL)
        errors = {name[4:-5]: kind for name, kind in vars(module.nixlBind).items() if name.endswith("Error")}
        return Library(module, log_level, errors)
    raise EngineError("NIXL does not load", "; ".join(reasons) or "no NIXL is installed", INSTALL)


def _import(name: str) -> ApiModule:
    """Import it, and undo what its import does to logging: a handler to stdout, and raiseExceptions."""
    logger, raise_exceptions = logging.getLogger("nixl"), logging.raiseExceptions
    silent = logging.Filter("no logger of that name")
    logger.addFilter(silent)
    try:
        return cast("ApiModule", importlib.import_module(name))
    finally:
        logging.raiseExceptions = raise_exceptions
        logger.removeFilter(silent)
        logger.handlers = [one for one in logger.handlers if one.get_name() != STDOUT_HANDLER]
        logger.propagate = True
