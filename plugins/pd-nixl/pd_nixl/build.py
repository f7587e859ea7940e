"""Which NIXL is installed and what it can create: seen from other processes, never loading it here."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata

from packaging.specifiers import SpecifierSet

from pdcore.backend import Readiness
from pdcore.installation import Installation, look_at

__all__ = ["INSTALL", "creation", "look", "modules", "probe", "version_refusal"]

INSTALL = "pip install 'pd-nixl[cu12]' (or [cu13]; without CUDA: pip install --no-deps 'nixl-cu12>=1.5,<2')"
VERSIONS = SpecifierSet(">=1.5,<2")
UNBUNDLED = ("libefa.so.1", "libfabric.so.1", "libhwloc.so.15", "libcuda.so.1")
"""The shared libraries that plugins of NIXL use if they are there, and that no wheel brings."""
PREFIXES = ("UCX_", "NIXL_")
CREATE_SECONDS = 30.0
CREATE = """
import importlib, json, os, sys
path, module, backend, params = map(json.loads, sys.argv[1:])
sys.path[:] = path
api = importlib.import_module(module)
agent = api.nixl_agent("look", api.nixl_agent_config(enable_prog_thread=False, backends=[]))
try:
    agent.create_backend(backend, params)
    error = ""
except Exception as failure:
    error = f"{type(failure).__name__}: {failure}"
print(json.dumps([agent.get_plugin_list(), error]), flush=True)
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


def version_refusal(module: str) -> str:
    """Return why the version of the distribution that brings ``module`` cannot be used, or ""."""
    name = module.partition(".")[0].replace("_", "-")
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{module} is there, but no metadata of {name} that tell its version"
    return "" if version in VERSIONS else f"{name} {version} is installed, {VERSIONS} is needed"


def look() -> Installation:
    """Return what is installed: the first that loads, else the first."""
    found = [look_at(name, "nixl", UNBUNDLED) for name in modules() or ("nixl_cu12._api",)]
    return next((one for one in found if not one.error), found[0])


def probe() -> Readiness:
    """Look whether the library can be loaded, and else what to install."""
    found = look()
    readiness = found.readiness({}, INSTALL)
    refusal = version_refusal(found.module) if readiness.ready else ""
    return Readiness.no(refusal, INSTALL) if refusal else readiness


def creation(
    backend: str, params: Mapping[str, str], settings: Mapping[str, str], environ: Mapping[str, str]
) -> tuple[tuple[str, ...], str]:
    """Create a NIXL backend in another process, once for the same arguments.

    Args:
        backend: NIXL's name of it.
        params: what it is created with.
        settings: the UCX settings among the params. NIXL says nothing of names and values that UCX
            doesn't take, so UCX is handed them here where it complains: as variables.
        environ: the variables of the process.

    Returns:
        The plugins that NIXL lists, and why the backend cannot be created ("" if it can).
    """
    complete = {
        **environ,
        **{f"UCX_{key}": value for key, value in settings.items()},
        "NIXL_LOG_LEVEL": "INFO",
        "UCX_LOG_LEVEL": "warn",
        "UCX_WARN_UNUSED_ENV_VARS": "y",
    }
    theirs = {name: value for name, value in complete.items() if name.startswith(PREFIXES)}
    plugins, error, log = _create(look().module, backend, _frozen(params), _frozen(theirs))
    if error:
        causes = [found[1].strip() for cause in CAUSES if (found := cause.search(log))]
        return plugins, f"{causes[0]} ({error})" if causes else error
    unknown = UNKNOWN_SETTINGS.search(log)
    wrong = [key for key in settings if unknown and re.search(rf"\bUCX_{key}\b(?!\?)", unknown[1])]
    return plugins, f"UCX has no setting {', '.join(wrong)}" if wrong else ""


@functools.cache
def _create(
    module: str, backend: str, params: tuple[tuple[str, str], ...], environ: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, ...], str, str]:
    arguments = [json.dumps(argument) for argument in (sys.path, module, backend, dict(params))]
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, with the program above
            [sys.executable, "-c", CREATE, *arguments],
            env={n: v for n, v in os.environ.items() if not n.startswith(PREFIXES)} | dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CREATE_SECONDS,
            check=True,
        )
        plugins, error = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return (), f"creating it did not end within {CREATE_SECONDS:g} s", ""
    except subprocess.CalledProcessError as failure:
        last = (failure.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return (), f"creating it ended with status {failure.returncode}: {last}", ""
    return tuple(plugins), error, done.stderr


def _frozen(values: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(values.items()))


def _installed(package: str) -> bool:
    """Whether it is there, a mere folder of that name aside; without importing it."""
    return getattr(importlib.util.find_spec(package), "origin", None) is not None
