"""Which build of the engine library is installed, and what it misses: seen without loading it here."""

from __future__ import annotations

from pdcore.contract.backend import Readiness
from pdcore.selection.installation import Installation, installed, look_at

__all__ = ["ENGINE_MODULE", "LOG_DIRECTORY", "engine_version", "look", "probe"]

ENGINE_MODULE = "mooncake.engine"
LOG_DIRECTORY = "MC_LOG_DIR"
"""With this variable set the library aborts the process when it loads."""
INSTALL = "pip install 'pd-mooncake[cpu]' (or [cuda12], [cuda13], [efa]: one of them)"
PACKAGES = {"libibverbs.so.1": "libibverbs1", "libnuma.so.1": "libnuma1", "libcurl.so.4": "libcurl4"}
"""The shared libraries that no wheel brings, and what Debian and Ubuntu call them."""


def engine_version() -> str:
    """Return which distributions bring the library, with their versions; without importing it."""
    return ", ".join(installed("mooncake-transfer-engine"))


def look() -> Installation:
    """Return what is installed."""
    return look_at(ENGINE_MODULE, "mooncake-transfer-engine", tuple(PACKAGES), (LOG_DIRECTORY,))


def probe() -> Readiness:
    """Look whether the library can be loaded, and else what to install."""
    return look().readiness(PACKAGES, INSTALL)
