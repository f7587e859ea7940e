"""Whether an engine's library is installed and loads: looked at from another process, for the probes of
backends, because here an import could not be undone."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata

import attrs

from pdcore.backend import Readiness

__all__ = ["Installation", "look_at"]

NO_SHARED_LIBRARY = re.compile(r"(\S+\.so\S*): cannot open shared object file")
LOOK_SECONDS = 30.0
LOOK = """
import ctypes, importlib, json, sys
path, module, *libraries = sys.argv[1:]
sys.path[:] = json.loads(path)
missing, error, flags = [], "", []
for name in libraries:
    try:
        ctypes.CDLL(name)
    except OSError:
        missing.append(name)
try:
    flags = [name for name, value in vars(importlib.import_module(module)).items() if value is True]
except ImportError as failure:
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

    def readiness(self, packages: Mapping[str, str], install: str) -> Readiness:
        """Return whether the library can be imported, and else what to do.

        Args:
            packages: shared library -> Debian package, for what no wheel brings.
            install: the command that installs the library itself.
        """
        if not self.error:
            return Readiness.yes()
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


@functools.cache
def look_at(
    module: str, distributions: str, libraries: tuple[str, ...] = (), hidden: tuple[str, ...] = ()
) -> Installation:
    """Import a module in a process of its own, once per process; takes some tenths of a second.

    Args:
        module: what is imported.
        distributions: how the names of the distributions begin that bring it.
        libraries: shared libraries that are tried one by one, since an import names only the first.
        hidden: variables that the other process does not get.
    """
    found = {(d.metadata["Name"] or "", d.version) for d in metadata.distributions()}
    names = tuple(sorted(f"{name} {version}" for name, version in found if name.startswith(distributions)))
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, with the program above
            [sys.executable, "-c", LOOK, json.dumps(sys.path), module, *libraries],
            env={name: value for name, value in os.environ.items() if name not in hidden},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LOOK_SECONDS,
            check=True,
        )
        flags, missing, error = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Installation(module, names, error=f"its import did not end within {LOOK_SECONDS:g} s")
    except subprocess.CalledProcessError as failure:
        last = (failure.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Installation(module, names, error=f"its import ends with status {failure.returncode}: {last}")
    return Installation(module, names, frozenset(flags), tuple(missing), error)
