"""Whether an engine's library is installed and loads: looked at from another process, for the probes of
backends, because here an import could not be undone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import metadata

import attrs
import msgspec
from packaging.specifiers import SpecifierSet

from pdcore.contract.backend import Readiness
from pdcore.host.isolation import attempt

__all__ = ["Installation", "installed", "look_at", "version_refusal"]

NO_SHARED_LIBRARY = re.compile(r"(\S+\.so\S*): cannot open shared object file")
LOOK = """
import ctypes, importlib
module, libraries = given
missing, error, flags = [], "", []
for name in libraries:
    try:
        ctypes.CDLL(name)
    except OSError:
        missing.append(name)
try:
    flags = [name for name, value in vars(importlib.import_module(module)).items() if value is True]
except (ImportError, OSError) as failure:
    error = str(failure)
print(json.dumps([flags, missing, error]))
"""


@attrs.frozen
class Installation:
    """What there is of a library.

    ``distributions`` with their versions, ``flags`` (the module's attributes that are True),
    ``missing`` shared libraries of those asked about, and ``error``: why it cannot be imported.
    """

    module: str = ""
    distributions: tuple[str, ...] = ()
    flags: frozenset[str] = frozenset()
    missing: tuple[str, ...] = ()
    error: str = ""

    def readiness(self, packages: Mapping[str, str], install: str, misfit: str = "") -> Readiness:
        """Return whether the library can be imported, and else what to do.

        Args:
            packages: shared library -> Debian package, for what no wheel brings.
            install: the command that installs the library itself.
            misfit: why it cannot be used although it can be imported.
        """
        if not self.error:
            return Readiness.no(misfit, install) if misfit else Readiness.yes()
        if self.error == f"No module named {self.module.partition('.')[0]!r}":
            return Readiness.no(f"the library {self.module!r} is not installed", install)
        missing = list(dict.fromkeys([*self.missing, *NO_SHARED_LIBRARY.findall(self.error)]))
        known = [packages[name] for name in missing if name in packages]
        fixes = [f"apt-get install {' '.join(known)}"] if known else []
        if len(known) < len(missing) or not missing:
            fixes.append(f"install the build that fits this machine: {install}")
        verb = "is" if len(missing) == 1 else "are"
        reason = f"{', '.join(missing)} {verb} missing" if missing else self.error
        return Readiness.no(reason, "; ".join(fixes))


def installed(begin: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the installed distributions whose names begin so, each with its version."""
    found = {(d.metadata["Name"] or "", d.version) for d in metadata.distributions()}
    return tuple(sorted(f"{name} {version}" for name, version in found if name.startswith(begin)))


def look_at(
    module: str,
    distributions: str | tuple[str, ...],
    libraries: tuple[str, ...] = (),
    hidden: tuple[str, ...] = (),
) -> Installation:
    """Import a module in a process of its own, once per process; takes some tenths of a second.

    Args:
        module: what is imported.
        distributions: how the names of the distributions begin that bring it.
        libraries: shared libraries that are tried one by one, since an import names only the first.
        hidden: what the names of the variables begin with that the other process does not get.
    """
    names = installed(distributions)
    tried = attempt(LOOK, module, libraries, hidden=hidden)
    if tried.error:
        return Installation(module, names, error=f"its import {tried.error}")
    flags, missing, error = msgspec.convert(tried.value, tuple[list[str], list[str], str])
    return Installation(module, names, frozenset(flags), tuple(missing), error)


def version_refusal(distribution: str, versions: str) -> str:
    """Return why the installed version of a distribution cannot be used, or "" if it can."""
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return f"there are no metadata of {distribution} that tell its version"
    return (
        ""
        if version in SpecifierSet(versions)
        else f"{distribution} {version} is installed, {versions} is needed"
    )
