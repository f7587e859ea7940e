"""Which MORI is installed and what it can create here: seen from other processes, for it may end its own."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import attrs
import msgspec

from pd_mori.config import MoriOptions, backend_config, native_environment
from pdcore.contract.backend import Readiness
from pdcore.host.isolation import attempt
from pdcore.selection.installation import Installation, installed, look_at, version_refusal

__all__ = ["INSTALL", "MODULE", "Machine", "engine_version", "look", "probe", "refusal", "try_engine"]

MODULE = "mori.io"
DISTRIBUTION = "amd_mori"
INSTALL = "pip install 'pd-mori[engine]'"
VERSIONS = ">=1.2.2,<1.3"
PYTHONS = ("3.10", "3.12")
"""The versions of Python that there are wheels for."""
PACKAGES = {
    "libpci.so.3": "libpci3",
    "libnuma.so.1": "libnuma1",
    "libdrm.so.2": "libdrm2",
    "libdrm_amdgpu.so.1": "libdrm-amdgpu1",
    "libibverbs.so.1": "libibverbs1",
    "libgrpc++.so.1": "libgrpc++1",
    "libprotobuf.so.23": "libprotobuf23",
}
"""The shared libraries of Debian and Ubuntu that no wheel brings, and their packages."""
ROCM = ("libamdhip64.so.7", "libhsa-runtime64.so.1", "librocm_smi64.so.1")
"""Those of ROCm 7. MORI loads librocm_smi64 when an engine starts, and ends the process without it."""
CREATE = """
import ctypes, os
from mori.io import BackendType, IOEngine, IOEngineConfig, RdmaBackendConfig
[config] = given
gpus, error = ctypes.c_int(0), ""
if ctypes.CDLL("libamdhip64.so.7").hipGetDeviceCount(ctypes.byref(gpus)):
    gpus.value = 0
engine = IOEngine("trial", IOEngineConfig("127.0.0.1", 0))
try:
    if config is not None:
        engine.create_backend(BackendType.RDMA, RdmaBackendConfig(**config))
except RuntimeError as failure:
    error = str(failure)
print(json.dumps([error, gpus.value]), flush=True)
os._exit(0)
"""
WHY = {
    "did not end": "MORI loops for ever on RDMA devices without a PCI address, as soft-RoCE",
    "with status 255": "MORI ends the process without an AMD GPU or librocm_smi64.so.1",
}


@attrs.frozen
class Machine:
    """What a trial found: why RDMA could not be created ("" if it could), and how many GPUs HIP has."""

    refusal: str
    gpus: int


def engine_version() -> str:
    """Return which distributions bring the library, with their versions; without importing it."""
    return ", ".join(installed("amd_mori"))


def look() -> Installation:
    """Return what is installed."""
    return look_at(MODULE, ("amd_mori", "amd-mori"), (*PACKAGES, *ROCM))


def refusal() -> str:
    """Return why the installed version cannot be used, or ""."""
    return version_refusal(DISTRIBUTION, VERSIONS)


def probe() -> Readiness:
    """Look whether the library can be loaded, and else name all that is missing."""
    found = look()
    if not found.error:
        misfit = refusal()
        return Readiness.no(misfit, INSTALL) if misfit else Readiness.yes()
    reasons, fixes = [], []
    if not found.distributions:
        reasons, fixes = [f"the wheel {DISTRIBUTION} is not installed"], [INSTALL]
        if (version := platform.python_version().rpartition(".")[0]) not in PYTHONS:
            reasons.append(f"it exists for Python {' and '.join(PYTHONS)}, and this is {version}")
            fixes = [f"take a Python {' or '.join(PYTHONS)}: {INSTALL}"]
    elif "'torch'" in found.error:
        reasons, fixes = [f"{MODULE} imports torch: {found.error}"], ["install torch, its build for ROCm"]
    if found.missing:
        reasons.append(f"{', '.join(found.missing)} missing")
        known = [PACKAGES[name] for name in found.missing if name in PACKAGES]
        fixes += [f"apt-get install {' '.join(known)}"] if known else []
        fixes += ["install ROCm 7"] if set(ROCM) & set(found.missing) else []
    return Readiness.no("; ".join(reasons or [found.error]), "; ".join(fixes or [INSTALL]))


def try_engine(options: MoriOptions, environ: Mapping[str, str], *, xgmi: bool) -> Machine:
    """Create an RDMA backend in another process. One of XGMI is always created: there, only look for GPUs."""
    config = None if xgmi else backend_config(options)
    complete = {**environ, **native_environment(options, environ)}
    trial = attempt(CREATE, config, hidden=("MORI_",), environ=complete)
    if trial.error:
        why = [reason for sign, reason in WHY.items() if sign in trial.error]
        return Machine("; ".join([f"creating an engine {trial.error}", *why]), 0)
    return Machine(*msgspec.convert(trial.value, tuple[str, int]))
