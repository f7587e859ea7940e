"""The MORI-IO library: loaded once per process, and typed as far as it is used."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Sequence
from typing import Protocol, cast

import attrs

from pd_mori.build import INSTALL, MODULE, refusal
from pd_mori.config import CP_TIMEOUT, LOG_LEVEL, MoriOptions, backend_config, native_environment
from pdcore.errors import EngineError
from pdcore.selection.environment import environment_set

__all__ = ["EngineDesc", "Library", "MemoryDesc", "NativeEngine", "Status", "load"]


class StatusCode(Protocol):
    """A member of MORI's enum StatusCode; it equals no int."""

    name: str


class Status(Protocol):
    """MORI's TransferStatus. MORI keeps a raw pointer to it until it is terminal."""

    def Code(self) -> StatusCode: ...  # noqa: N802 - the library's names
    def Message(self) -> str: ...  # noqa: N802
    def InProgress(self) -> bool: ...  # noqa: N802
    def Succeeded(self) -> bool: ...  # noqa: N802
    def WaitFor(self, timeout_ms: int) -> StatusCode: ...  # noqa: N802


class EngineDesc(Protocol):
    """How an engine is reached."""

    key: str
    host: str
    port: int

    def pack(self) -> bytes: ...


class MemoryDesc(Protocol):
    """Registered memory of one engine."""

    engine_key: str
    size: int
    data: int
    loc: object

    def pack(self) -> bytes: ...


Memories = Sequence[MemoryDesc]
Lists = Sequence[list[int]]


class NativeEngine(Protocol):
    """The methods of ``mori.io.IOEngine`` that are used; what they cannot do is a RuntimeError."""

    def create_backend(self, kind: object, config: object, /) -> None: ...
    def get_engine_desc(self) -> EngineDesc: ...
    def register_remote_engine(self, desc: EngineDesc, /) -> None: ...
    def deregister_remote_engine(self, desc: EngineDesc, /) -> None: ...
    def register_memory(self, address: int, size: int, device: int, loc: object, /) -> MemoryDesc: ...
    def deregister_memory(self, desc: MemoryDesc, /) -> None: ...
    def allocate_transfer_uid(self) -> int: ...
    def batch_write(
        self, local: Memories, here: Lists, remote: Memories, there: Lists, sizes: Lists, uids: list[int], /
    ) -> list[Status]: ...


class _Unpacker(Protocol):
    def unpack(self, packed: bytes, /) -> object: ...


class _BackendTypes(Protocol):
    RDMA: object
    XGMI: object


class _Locations(Protocol):
    CPU: object
    GPU: object


class IoModule(Protocol):
    """The module ``mori.io``."""

    BackendType: _BackendTypes
    MemoryLocationType: _Locations
    EngineDesc: _Unpacker
    MemoryDesc: _Unpacker

    def IOEngineConfig(self, host: str, port: int) -> object: ...  # noqa: N802 - the library's names
    def RdmaBackendConfig(self, **fields: int) -> object: ...  # noqa: N802
    def XgmiBackendConfig(self) -> object: ...  # noqa: N802
    def IOEngine(self, key: str, config: object) -> NativeEngine: ...  # noqa: N802


@attrs.frozen
class Library:
    """The loaded library."""

    module: IoModule = attrs.field(repr=False)

    def engine_desc(self, packed: bytes) -> EngineDesc:
        """Return what a peer's engine packed; RuntimeError if it is noise."""
        return cast("EngineDesc", self.module.EngineDesc.unpack(packed))

    def memory_desc(self, packed: bytes) -> MemoryDesc:
        """Return what a peer's engine packed; RuntimeError if it is noise."""
        return cast("MemoryDesc", self.module.MemoryDesc.unpack(packed))

    def engine(self, key: str, host: str, options: MoriOptions, *, xgmi: bool) -> NativeEngine:
        """Return a new engine with this one backend, listening on a free port of ``host``.

        Raises:
            EngineError: the backend cannot be created.
        """
        io, fields, name = self.module, backend_config(options), "XGMI" if xgmi else "RDMA"
        config = io.XgmiBackendConfig() if xgmi else io.RdmaBackendConfig(**fields)
        engine = io.IOEngine(key, io.IOEngineConfig(host, 0))
        try:
            with environment_set(native_environment(options, os.environ)):
                engine.create_backend(getattr(io.BackendType, name), config)
        except RuntimeError as error:
            raise EngineError(
                f"MORI could not create its backend {name}",
                f"{error}; {fields}",
                "look at pdcore doctor mori, and at MORI's log (option log_level=info)",
            ) from error
        return engine


_loading = threading.Lock()  # guards _library
_library: Library | None = None


def load(options: MoriOptions) -> Library:
    """Load the library into this process.

    Raises:
        EngineError: it is missing, does not load, or is of a wrong version.
    """
    global _library
    variables = native_environment(options, os.environ)
    with _loading:
        if _library is None:
            # MORI reads these when it first needs them, and never again: so they stay set.
            kept = {name: value for name, value in variables.items() if name in (CP_TIMEOUT, LOG_LEVEL)}
            os.environ.update(kept)
            _library = Library(_import())
        return _library


def _import() -> IoModule:
    try:
        module = importlib.import_module(MODULE)
    except (ImportError, OSError) as error:
        raise EngineError("MORI does not load", f"{error}", f"{INSTALL}; see pdcore doctor mori") from error
    if misfit := refusal():
        raise EngineError("this MORI cannot be used", misfit, INSTALL)
    return cast("IoModule", module)
