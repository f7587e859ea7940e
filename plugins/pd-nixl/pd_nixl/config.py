"""What a user can set on the NIXL backend, checked before any engine starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Literal

import attrs
from attrs.validators import ge, optional

from pdcore.errors import ConfigError, ConfigProblem

__all__ = [
    "NixlOptions",
    "Protocol",
    "backend_params",
    "efa_devices",
    "native_environment",
    "rdma_devices",
    "tcp_transports",
    "ucx_settings",
]

DEVICE_NAMES = re.compile(r"[\w.:-]+(,[\w.:-]+)*")
SETTING = re.compile(r"[A-Z][A-Z0-9_]*")
OWNED = {
    "TLS": "select nixl_tcp for TCP, or set UCX_TLS",
    "NET_DEVICES": "use device_list, or set UCX_NET_DEVICES",
}
"""The UCX settings that have another place, and which."""
NVIDIA, DISPLAY_CLASS = "0x10de", "0x03"
"""Of PCI: the vendor, and how the classes of GPUs begin. NIXL counts GPUs like this, not by ``/dev``."""


class Protocol(Enum):
    """What an engine can be asked for, the default first."""

    UCX = "ucx"
    TCP = "tcp"
    LIBFABRIC = "libfabric"
    POSIX = "posix"

    @property
    def plugin(self) -> str:
        """The NIXL plugin that does it."""
        return "UCX" if self is Protocol.TCP else self.name


@attrs.frozen
class NixlOptions:
    """The options; None leaves it to NIXL.

    ``num_workers`` and ``num_threads`` are those of the NIXL plugin, ``split_batch_size`` the
    descriptors from which it splits a transfer over its threads. ``device_list`` names RDMA devices:
    ``mlx5_0,mlx5_1``. ``engine_config`` holds UCX settings without their ``UCX_``:
    ``K=V,K=V``. ``error_handling`` can only be "peer": with NIXL's "none" a peer that died is never
    noticed. ``log_level`` holds for the whole process; None: NIXL_LOG_LEVEL, else WARN.
    """

    num_workers: int | None = attrs.field(default=None, validator=optional(ge(1)))
    num_threads: int | None = attrs.field(default=None, validator=optional(ge(0)))
    split_batch_size: int | None = attrs.field(default=None, validator=optional(ge(1)))
    device_list: str = ""
    engine_config: str = ""
    error_handling: Literal["peer"] = "peer"
    log_level: Literal["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"] | None = None

    def __attrs_post_init__(self) -> None:
        if self.device_list and not DEVICE_NAMES.fullmatch(self.device_list):
            raise _wrong("device_list", f"must list devices like 'mlx5_0,mlx5_1', has {self.device_list!r}")
        ucx_settings(self)


def ucx_settings(options: NixlOptions) -> dict[str, str]:
    """Return ``engine_config`` by setting.

    Raises:
        ConfigError: it is malformed, or has a setting that something else owns.
    """
    given, settings = options.engine_config, {}
    for key, _, value in (part.strip().partition("=") for part in given.split(",") if given):
        if key.startswith("UCX_") or not SETTING.fullmatch(key):
            raise _wrong("engine_config", f"must have settings like RNDV_THRESH, without UCX_, has {key!r}")
        if not value or key in settings:
            raise _wrong("engine_config", f"must give {key} once and one value, has {key}={value!r}")
        if key in OWNED:
            raise _wrong("engine_config", f"has {key}: {OWNED[key]}")
        settings[key] = value
    return settings


def backend_params(options: NixlOptions, protocol: Protocol) -> dict[str, str]:
    """Return what the NIXL plugin is created with; NIXL ignores keys that it doesn't know."""
    given: dict[str, object] = {
        "num_threads": options.num_threads,
        "split_batch_size": options.split_batch_size,
    }
    if protocol.plugin == "UCX":
        given |= {
            "ucx_error_handling_mode": options.error_handling,
            "num_workers": options.num_workers,
            "device_list": options.device_list or None,
            "engine_config": ",".join(f"{k}={v}" for k, v in ucx_settings(options).items()) or None,
        }
    return {key: str(value) for key, value in given.items() if value is not None}


def native_environment(options: NixlOptions, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what has to be set while the library loads and a plugin is created.

    Stdout stays the program's. UCX's EFA module is left out where it has no device: it brings a second
    libnl-route into the process, and the two crash at exit.
    """
    level = options.log_level or environ.get("NIXL_LOG_LEVEL") or "WARN"
    defaults = {"UCX_LOG_FILE": "stderr", "UCX_LOG_LEVEL": level.lower()}
    if not efa_devices():
        defaults["UCX_MODULES"] = "^efa"
    return {"NIXL_LOG_LEVEL": level, **{k: v for k, v in defaults.items() if k not in environ}}


def rdma_devices() -> list[Path]:
    """Return where the system describes the machine's RDMA devices, those of EFA as well."""
    return sorted(Path("/sys/class/infiniband").glob("*"))


def efa_devices() -> list[str]:
    """Return the names of the machine's EFA devices."""
    return [path.name for path in rdma_devices() if (path / "device" / "driver").resolve().name == "efa"]


def tcp_transports(devices: Path = Path("/sys/bus/pci/devices")) -> str:
    """Return the ``UCX_TLS`` that keeps UCX to TCP. On a machine with an NVIDIA GPU NIXL creates no UCX that
    cannot reach the GPU's memory, so there it has ``cuda_copy`` as well, which crosses no process."""
    for device in devices.glob("*"):
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        if vendor == NVIDIA and kind.startswith(DISPLAY_CLASS):
            return "tcp,cuda_copy"
    return "tcp"


def _wrong(option: str, reason: str) -> ConfigError:
    return ConfigError([ConfigProblem(option, "code", reason)])
