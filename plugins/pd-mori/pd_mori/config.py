"""What a user can set on the MORI-IO backend, and the variables by which MORI takes some of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Literal

import attrs
from attrs.validators import and_, ge, le, optional

from pdcore.errors import ConfigError, ConfigProblem

__all__ = ["VARIABLES", "MoriOptions", "Protocol", "backend_config", "contradictions", "native_environment"]

DEVICE_NAMES = re.compile(r"\^?[\w.:-]+(,[\w.:-]+)*")
MIN_MS, MAX_MS = 100, 5000
"""Bounds of ``cp_timeout_ms``: MORI holds other transfers up while it waits, and 0 would wait for ever."""
CP_TIMEOUT, LOG_LEVEL = "MORI_IO_CP_TIMEOUT_MS", "MORI_GLOBAL_LOG_LEVEL"
VARIABLES = {
    "qp_per_transfer": "MORI_IO_QP_PER_TRANSFER",
    "post_batch_size": "MORI_IO_POST_BATCH_SIZE",
    "num_worker_threads": "MORI_IO_NUM_WORKER_THREADS",
    "num_nics_per_transfer": "MORI_IO_NUM_NICS_PER_TRANSFER",
    "enable_transfer_chunking": "MORI_IO_ENABLE_CHUNKING",
    "chunk_bytes": "MORI_IO_CHUNK_BYTES",
    "max_chunks_per_transfer": "MORI_IO_MAX_CHUNKS",
}
"""The options that are fields of MORI's configuration, and the variables that would overrule them."""
PROCESS = {"ib_device": "MORI_RDMA_DEVICES", "cp_timeout_ms": CP_TIMEOUT, "log_level": LOG_LEVEL}
"""The options that MORI only takes as variables."""
OWNED = {"MORI_IO_ENABLE_NOTIFICATION": "0", "MORI_DISABLE_AUTO_XGMI": "1"}
"""Notifications poison a status when posting one fails, and by itself MORI would mix XGMI into RDMA."""


class Protocol(Enum):
    """What an engine can be asked for, the default first."""

    RDMA = "rdma"
    XGMI = "xgmi"
    TCP = "tcp"


@attrs.frozen
class MoriOptions:
    """The options; None leaves it to MORI or its variable.

    ``qp_per_transfer`` queue pairs connect two engines. Chunking cuts long runs at ``chunk_bytes``, into
    ``max_chunks_per_transfer`` at most; without it a run longer than the NIC's message limit is refused.
    ``ib_device`` names RDMA devices: ``mlx5_0,mlx5_1``, or ``^`` and those to leave out. ``cp_timeout_ms``
    bounds each step of MORI's control plane, ``log_level`` its log on stdout: both for the whole process.
    ``aux_rdma`` sends aux rows through the engine, to peers that can take them so.
    """

    qp_per_transfer: int | None = attrs.field(default=None, validator=optional(ge(1)))
    post_batch_size: int | None = attrs.field(default=None, validator=optional(ge(1)))
    num_worker_threads: int | None = attrs.field(default=None, validator=optional(ge(1)))
    num_nics_per_transfer: int | None = attrs.field(default=None, validator=optional(ge(1)))
    enable_transfer_chunking: bool | None = None
    chunk_bytes: int | None = attrs.field(default=None, validator=optional(ge(4096)))
    max_chunks_per_transfer: int | None = attrs.field(default=None, validator=optional(ge(1)))
    ib_device: str = ""
    cp_timeout_ms: int | None = attrs.field(default=None, validator=optional(and_(ge(MIN_MS), le(MAX_MS))))
    log_level: Literal["trace", "debug", "info", "warn", "error", "critical"] | None = None
    aux_rdma: bool = False

    def __attrs_post_init__(self) -> None:
        if self.ib_device and not DEVICE_NAMES.fullmatch(self.ib_device):
            reason = f"must list devices like 'mlx5_0,mlx5_1' or '^mlx5_0', has {self.ib_device!r}"
            raise ConfigError([ConfigProblem("ib_device", "code", reason)])


def backend_config(options: MoriOptions) -> dict[str, int | bool]:
    """Return what MORI's RdmaBackendConfig is created with."""
    given = {name: value for name in VARIABLES if (value := getattr(options, name)) is not None}
    return {"qp_per_transfer": 4, "enable_transfer_chunking": True, "enable_notification": False, **given}


def native_environment(options: MoriOptions, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that have to be set while an engine starts."""
    defaults = {CP_TIMEOUT: "1000", LOG_LEVEL: "critical"}
    return {**{k: v for k, v in defaults.items() if k not in environ}, **OWNED, **_given(options, PROCESS)}


def contradictions(options: MoriOptions, environ: Mapping[str, str]) -> dict[str, str]:
    """Return by variable why its value keeps an option, or what the adapter needs, from being used."""
    wanted = {**OWNED, **_given(options, VARIABLES), **_given(options, PROCESS)}
    told = {
        name: f"{name}={environ[name]} contradicts {value}, which is needed or asked for"
        for name, value in wanted.items()
        if environ.get(name, value) != value
    }
    given = environ.get(CP_TIMEOUT, "1000")
    if not (given.isdecimal() and MIN_MS <= int(given) <= MAX_MS):
        told[CP_TIMEOUT] = f"{CP_TIMEOUT}={given} is not within {MIN_MS}..{MAX_MS}"
    return told


def _given(options: MoriOptions, variables: Mapping[str, str]) -> dict[str, str]:
    values = {variable: getattr(options, name) for name, variable in variables.items()}
    return {k: str(int(v) if isinstance(v, bool) else v) for k, v in values.items() if v not in (None, "")}
