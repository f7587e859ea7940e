"""Which NIXL is installed and what it can create: seen from other processes, never loading it here."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping

from pdcore.contract.backend import Readiness
from pdcore.host.isolation import attempt
from pdcore.selection.installation import Installation, installed, look_at, version_refusal

__all__ = ["INSTALL", "creation_refusal", "engine_version", "look", "modules", "probe", "refusal"]

INSTALL = "pip install 'pd-nixl[cu12]' (or [cu13]; without CUDA: pip install --no-deps 'nixl-cu12>=1.5,<2')"
VERSIONS = ">=1.5,<2"
UNBUNDLED = ("libefa.so.1", "libfabric.so.1", "libhwloc.so.15", "libcuda.so.1")
"""The shared libraries that plugins of NIXL use if they are there, and that no wheel brings."""
PREFIXES = ("UCX_", "NIXL_")
CREATE = """
import importlib
module, backend, params = given
api = importlib.import_module(module)
agent = api.nixl_agent("look", api.nixl_agent_config(enable_prog_thread=False, backends=[]))
try:
    agent.create_backend(backend, params)
    error = ""
except Exception as failure:
    error = f"{type(failure).__name__}: {failure}"
print(json.dumps(error), flush=True)
os._exit(0)
"""
CAUSES = (
    re.compile(r"Failed to load plugin from \S+: (.+)"),
    re.compile(r"UCX +WARN +(network device .+)"),
    re.compile(r"UCX +ERROR +(.+)"),
    re.compile(r"^E\d{4} .*?\] (.+)", re.MULTILINE),
)
UNKNOWN_SETTINGS = re.compile(r"UCX +WARN +unused environment variables?: (.+)")


def modules() -> tuple[str, ...]:
    """Return the modules that may be the engine's, in the order in which they are tried.

    The package ``nixl`` picks by torch's CUDA version, and imports torch to learn it: it is left alone
    where that would be its first import.
    """
    wheels = ("nixl_cu13", "nixl_cu12")
    loaded = [f"{name}._api" for name in ("nixl", *wheels) if f"{name}._api" in sys.modules]
    installed = [name for name in ("nixl", *wheels) if _installed(name)]
    if "torch" not in sys.modules and _installed("torch"):
        installed = [name for name in installed if name != "nixl"]
    return tuple(loaded[:1] or [f"{name}._api" for name in installed])


def refusal(module: str) -> str:
    """Return why the version of the distribution that brings ``module`` cannot be used, or ""."""
    return version_refusal(module.partition(".")[0].replace("_", "-"), VERSIONS)


def engine_version() -> str:
    """Return which distributions bring the library, with their versions; without importing it."""
    return ", ".join(installed("nixl"))


def look() -> Installation:
    """Return what is installed: the first that loads, else the first."""
    found = [look_at(name, "nixl", UNBUNDLED) for name in modules() or ("nixl_cu12._api",)]
    return next((one for one in found if not one.error), found[0])


def probe() -> Readiness:
    """Look whether the library can be loaded, and else what to install."""
    found = look()
    return found.readiness({}, INSTALL, refusal(found.module))


def creation_refusal(
    backend: str, params: Mapping[str, str], settings: Mapping[str, str], environ: Mapping[str, str]
) -> str:
    """Create a NIXL backend in another process, and return why that fails, or "".

    Args:
        backend: NIXL's name of it.
        params: what it is created with.
        settings: the UCX settings among the params. NIXL says nothing of names and values that UCX
            doesn't take, so UCX is handed them here where it complains: as variables.
        environ: the variables of the process.
    """
    complete = {
        **environ,
        **{f"UCX_{key}": value for key, value in settings.items()},
        "NIXL_LOG_LEVEL": "INFO",
        "UCX_LOG_LEVEL": "warn",
        "UCX_WARN_UNUSED_ENV_VARS": "y",
    }
    trial = attempt(CREATE, look().module, backend, dict(params), hidden=PREFIXES, environ=complete)
    if trial.error:
        return f"creating it {trial.error}"
    if error := str(trial.value):
        causes = [found[1].strip() for cause in CAUSES if (found := cause.search(trial.log))]
        return f"{causes[0]} ({error})" if causes else error
    unknown = UNKNOWN_SETTINGS.search(trial.log)
    wrong = [key for key in settings if unknown and re.search(rf"\bUCX_{key}\b(?!\?)", unknown[1])]
    return f"UCX has no setting {', '.join(wrong)}" if wrong else ""


def _installed(package: str) -> bool:
    """Whether it is there, a mere folder of that name aside; without importing it."""
    return getattr(importlib.util.find_spec(package), "origin", None) is not None
