"""The engine library: loaded once with the environment that it reads then, and engines started from it."""

from __future__ import annotations

import importlib
import json
import math
import os
import socket
import struct
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import attrs
import numpy as np
import numpy.typing as npt

from pd_mooncake.build import ENGINE_MODULE, LOG_DIRECTORY
from pd_mooncake.config import Protocol as WireProtocol
from pd_mooncake.protocol import start_environment
from pdcore.errors import EngineError
from pdcore.host.address import join, numeric
from pdcore.selection.environment import environment_set

__all__ = ["Library", "NativeSettings", "TransferEngineApi", "announced", "check_environment", "load"]

P2P = "P2PHANDSHAKE"
IPV6 = "MC_USE_IPV6"
ASK_SECONDS = 2.0
METADATA_REQUEST = 1
MAX_DESCRIPTOR = 128 * 2**20

Addresses = Sequence[int] | npt.NDArray[np.uint64]


class TransferEngineApi(Protocol):
    """The methods of ``mooncake.engine.TransferEngine`` that are used; they return 0 if all is well."""

    def initialize(self, host: str, metadata: str, protocol: str, device: str, /) -> int: ...
    def get_rpc_port(self) -> int: ...
    def register_memory(self, address: int, length: int, /) -> int: ...
    def unregister_memory(self, address: int, /) -> int: ...
    def batch_transfer_sync_write(
        self, segment: str, source: Addresses, target: Addresses, lengths: Addresses, /
    ) -> int: ...
    def batch_transfer_sync_read(
        self, segment: str, local: Addresses, remote: Addresses, lengths: Addresses, /
    ) -> int: ...
    def transfer_sync_read(self, segment: str, local: int, remote: int, length: int, /) -> int: ...


class EngineModule(Protocol):
    """The module ``mooncake.engine``."""

    SUPPORT_CUDA: bool

    def TransferEngine(self) -> TransferEngineApi: ...  # noqa: N802 - the library's name


@attrs.frozen
class NativeSettings:
    """What an engine is started with. ``host`` is how peers reach it; ``transfer_timeout`` in seconds."""

    host: str
    protocol: str
    device: str
    transfer_timeout: float
    npu_id: int | None = None


@attrs.define
class Library:
    """The loaded library. ``environ`` is what it was loaded with, ``announced`` what its engines tell."""

    module: EngineModule
    environ: Mapping[str, str] = attrs.field(repr=False)
    announced: str | None = None

    def start(self, settings: NativeSettings) -> TransferEngineApi:
        """Return a started engine: the only way to one, so that its protocol is never another.

        Raises:
            EngineError: it does not start, or tells its peers another protocol than was asked for.
        """
        variables = {
            **start_environment(WireProtocol(settings.protocol)),
            "MC_TRANSFER_TIMEOUT": str(math.ceil(settings.transfer_timeout)),
        }
        with _process, environment_set(variables):
            engine = self.module.TransferEngine()
            code = engine.initialize(_local_name(settings), P2P, settings.protocol, settings.device)
        if code != 0:
            raise EngineError(
                f"the Mooncake engine did not start on {settings.host} with {settings.protocol!r}",
                f"initialize() returned {code}",
                "look at its log (option log_level=INFO), and at pdcore doctor mooncake",
            )
        self.announced = announced("127.0.0.1", engine.get_rpc_port(), ASK_SECONDS)
        if self.announced not in (None, settings.protocol):
            raise EngineError(
                f"the Mooncake engine did not take the protocol {settings.protocol!r}",
                f"it tells its peers {self.announced!r}",
                "select the variant that is meant; pdcore doctor mooncake tells what there is",
            )
        return engine


_process = threading.Lock()  # guards the process's MC_ environment and _library
_library: Library | None = None


def load(variables: Mapping[str, str], host: str = "") -> Library:
    """Load the library into this process, with ``variables`` set for what it reads just then.

    So it does whether its control ports speak IPv4 or IPv6: the one of ``host``, which other engines of
    this process must share. With a name it is IPv4, unless MC_USE_IPV6 is set.

    Raises:
        EngineError: it is missing or does not load, or is loaded already with other values.
    """
    global _library
    check_environment(os.environ)
    if ":" in host:
        variables = {**variables, IPV6: "1"}
    with _process:
        if _library is None:
            # Whoever imported it before us did it with the environment as it is, as far as one can know.
            foreign = ENGINE_MODULE in sys.modules
            with environment_set({} if foreign else {"MC_LOG_LEVEL": "ERROR", **variables}):
                _library = Library(_import(), dict(os.environ))
        library = _library
    different = [
        f"{name}={library.environ.get(name, '(not set)')} then, {name}={value} now"
        for name, value in variables.items()
        if library.environ.get(name) != value
    ]
    if different:
        raise EngineError(
            "the Mooncake library is loaded already, and reads its settings only then",
            "; ".join(different),
            "give all managers of a process the same log_level and ports, or start another process",
        )
    if numeric(host) is not None and ":" not in host and IPV6 in library.environ:
        raise EngineError(
            "the Mooncake library speaks IPv6 in this process, and would reach nobody over IPv4",
            f"{IPV6}={library.environ[IPV6]} when it was loaded, host is {host}",
            f"unset {IPV6}, and give all managers of a process hosts of one family",
        )
    return library


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse what would end the process or be ignored.

    Raises:
        EngineError: naming the variable, its value, and why.
    """
    if LOG_DIRECTORY in environ:
        raise EngineError(
            f"{LOG_DIRECTORY} is set, with which the Mooncake library aborts the process when it loads",
            f"{LOG_DIRECTORY}={environ[LOG_DIRECTORY]}",
            f"unset {LOG_DIRECTORY}; the engine logs to stderr",
        )


def announced(host: str, port: int, seconds: float) -> str | None:
    """Ask an engine, as its peers do, by which protocol it is reached; None: no answer in time.

    The request is TransferMetadata's: a length (uint64), a kind (one byte), JSON. Peers choose their
    transport by the answer.

    Raises:
        ConnectionRefusedError: nobody listens there.
    """
    try:
        with socket.create_connection((host, port), seconds) as connection:
            connection.sendall(struct.pack("<QB", 3, METADATA_REQUEST) + b"{}")
            with connection.makefile("rb") as answer:
                (length,) = struct.unpack("<Q", answer.read(8))
                body = answer.read(min(length, MAX_DESCRIPTOR))
        told = json.loads(body[1:]).get("protocol")
    except ConnectionRefusedError:
        raise
    except (OSError, ValueError, struct.error, AttributeError):
        return None
    return told if isinstance(told, str) else None


def _import() -> EngineModule:
    try:
        return cast("EngineModule", importlib.import_module(ENGINE_MODULE))
    except ImportError as error:
        fix = "pdcore doctor mooncake says what to install"
        raise EngineError("the Mooncake library does not load", str(error), fix) from error


def _local_name(settings: NativeSettings) -> str:
    """Ascend wants a free port and the physical device behind the host."""
    if settings.npu_id is None:
        return settings.host
    with socket.socket() as free:
        free.bind(("", 0))
        return f"{join(settings.host, free.getsockname()[1])}:npu_{settings.npu_id}"
