"""What a user can set on the Mooncake backend, checked before any engine starts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Literal

import attrs
from attrs.validators import and_, ge, le, optional

from pdcore.config.structuring import Text, structure_options
from pdcore.errors import ConfigError, ConfigProblem

__all__ = ["VARIABLES", "MemPool", "MooncakeOptions", "Protocol", "device_for", "with_environment"]

DEVICE_NAMES = re.compile(r"[\w.-]+(,[\w.-]+)*")
ENGINE_PORTS = (15000, 17000)
"""The engine's own range, which it also falls back to when one is wrong (config.cpp, ValidatePortRange)."""
READ_WHEN_LOADED = {"log_level": "MC_LOG_LEVEL", "min_port": "MC_MIN_RPC_PORT", "max_port": "MC_MAX_RPC_PORT"}
VARIABLES = {
    "protocol": "MOONCAKE_PROTOCOL",
    "send_aux_tcp": "MOONCAKE_SEND_AUX_TCP",
    "transfer_timeout": "MC_TRANSFER_TIMEOUT",
    **READ_WHEN_LOADED,
}
"""What an option that is left open is taken from."""


class Protocol(Enum):
    """The wire protocols as the engine spells them, the default first."""

    RDMA = "rdma"
    TCP = "tcp"
    EFA = "efa"
    ASCEND = "ascend"
    NVLINK = "nvlink"
    INTRA_NVLINK = "nvlink_intra"


class MemPool(Enum):
    """The custom pool that the KV memory comes from; the names are SGLang's."""

    NONE = "NONE"
    NVLINK = "NVLINK"
    BAREX = "BAREX"
    INTRA_NODE_NVLINK = "INTRA_NODE_NVLINK"


def _port(_instance: object, attribute: attrs.Attribute[int | None], value: int | None) -> None:
    if value is not None and not (1024 <= value <= 32767 or 61000 <= value <= 65535):
        reason = f"must lie in 1024..32767 or 61000..65535, which the engine accepts, is {value}"
        raise _wrong(attribute.name, reason)


@attrs.frozen
class MooncakeOptions:
    """The options. None leaves it to its variable in :data:`VARIABLES`, or else to the default.

    ``device`` names RDMA devices: ``mlx5_0,mlx5_1``, a JSON mapping of GPU to such a list, or the path
    of a ``.json`` file that holds one, from which ``gpu_id`` picks. ``npu_id`` is Ascend's physical
    device. ``custom_mem_pool`` says where the KV memory comes from. ``send_aux_tcp`` sends aux rows
    over TCP. ``log_level`` (ERROR) and the ports (15000 to 17000) hold for the whole process. The engine
    gives up one call after ``transfer_timeout`` seconds (30); it makes less than 5 into 5.
    """

    protocol: Protocol | None = None
    device: str = ""
    gpu_id: int = attrs.field(default=0, validator=ge(0))
    npu_id: int | None = attrs.field(default=None, validator=optional(ge(0)))
    custom_mem_pool: MemPool = MemPool.NONE
    send_aux_tcp: bool | None = None
    log_level: Literal["TRACE", "INFO", "WARNING", "ERROR"] | None = None
    min_port: int | None = attrs.field(default=None, validator=_port)
    max_port: int | None = attrs.field(default=None, validator=_port)
    transfer_timeout: float | None = attrs.field(default=None, validator=optional(and_(ge(5.0), le(86400.0))))

    def __attrs_post_init__(self) -> None:
        low, high = self.min_port or ENGINE_PORTS[0], self.max_port or ENGINE_PORTS[1]
        if low > high:
            raise _wrong("min_port", f"must not exceed max_port, the range is {low}..{high}")
        device_for(self)

    @property
    def load_variables(self) -> dict[str, str]:
        """The variables that the library reads while it loads, as far as these options say."""
        wanted = {variable: getattr(self, option) for option, variable in READ_WHEN_LOADED.items()}
        return {variable: str(value) for variable, value in wanted.items() if value is not None}


def with_environment(options: MooncakeOptions, environ: Mapping[str, str]) -> MooncakeOptions:
    """Return the options with what they leave open taken from the environment.

    Raises:
        ConfigError: a variable's value is none of the option's.
    """
    for option, variable in VARIABLES.items():
        if environ.get(variable) and getattr(options, option) is None:
            told = structure_options(MooncakeOptions, {option: Text(environ[variable])}, variable)
            options = attrs.evolve(options, **{option: getattr(told, option)})
    return options


def device_for(options: MooncakeOptions) -> str:
    """Return the devices that the engine shall use, comma-separated; "" lets it take all.

    Raises:
        ConfigError: the list or the mapping is malformed, or has nothing for ``gpu_id``.
    """
    text = options.device
    if text.endswith(".json"):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _wrong("device", f"names a file that cannot be read: {error}") from error
    if not text.lstrip().startswith("{"):
        return _names(text) if options.device else ""
    try:
        by_gpu = {gpu: _names(devices) for gpu, devices in json.loads(text).items()}
    except json.JSONDecodeError as error:
        raise _wrong("device", f"is a malformed JSON mapping: {error}") from error
    strays = [gpu for gpu in by_gpu if not gpu.isdecimal()]
    if strays:
        raise _wrong("device", f"must map GPU numbers to devices, has {', '.join(map(repr, strays))}")
    if str(options.gpu_id) not in by_gpu:
        known = ", ".join(by_gpu) or "no GPU"
        raise _wrong("device", f"has nothing for gpu_id {options.gpu_id}, it knows {known}")
    return by_gpu[str(options.gpu_id)]


def _names(devices: object) -> str:
    names = devices.replace(" ", "").strip() if isinstance(devices, str) else ""
    if not DEVICE_NAMES.fullmatch(names):
        raise _wrong("device", f"must list devices like 'mlx5_0,mlx5_1', has {devices!r}")
    return names


def _wrong(option: str, reason: str) -> ConfigError:
    return ConfigError([ConfigProblem(option, "code", reason)])
