"""Build what MORI-IO needs and this machine lacks, into the environment of the Python that runs this.

``emulated/`` gets the libraries of the C files here, and stand-ins for every symbol of ROCm, gRPC
and protobuf that MORI's libraries link; ``run`` starts Python with them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ENVIRONMENT = Path(sys.prefix)
LIBRARIES = ENVIRONMENT / "emulated"
PACKAGES = Path(sysconfig.get_path("purelib"))
PCI_FOLDER = LIBRARIES / "0000:ff:00.0"
"""MORI reads the NIC's PCI address off its path, and never returns from one without."""

COMPILER = ("gcc", "-std=c17", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror")
VERBS = ("fabric.c", "nic.c", "device.c", "verbs.c")
DLOPENED = {"libibverbs.so": VERBS, "librocm_smi64.so.1": ("rocm_smi.c",)}
"""MORI opens these by name when it needs them. The first of the names that it tries."""

LAUNCHER = """#!/bin/sh
# Python with the emulated libraries of tests/mori_on_cpu; the loader reads the path once, at the start.
here=$(cd "$(dirname "$0")" && pwd)
LD_LIBRARY_PATH=$here/emulated exec "$here/bin/python" "$@"
"""


class Runtime(NamedTuple):
    """A library of ROCm: the symbols of one family of versions, all of which answer ``error``."""

    soname: str
    versions: str
    error: int
    sources: tuple[str, ...] = ()


ROCM = (
    Runtime("libamdhip64.so.7", "hip_", 100, ("hip.c",)),
    Runtime("libhsa-runtime64.so.1", "ROCR_", 0x1000),
)
SERVICES = ("libprotobuf.so.23", "libgrpc++.so.1", "libgrpc.so.10", "libgpr.so.10")
"""For MORI's other parts. The first one gets all their symbols, the others only have to exist."""
ABSENT = {*SERVICES, *(runtime.soname for runtime in ROCM)}


def output(*command: str | Path) -> str:
    """Run a command and return what it prints; its complaints go to the terminal."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def link(soname: str, *arguments: str | Path) -> None:
    """Compile and link a shared library."""
    output(*COMPILER, "-shared", f"-Wl,-soname,{soname}", "-o", LIBRARIES / soname, *arguments)


def symbols(table: str, libraries: Iterable[Path]) -> set[tuple[str, str]]:
    """Return (name, version or "") of the "defined" or "undefined" symbols of libraries."""
    lines = output("nm", "-D", f"--{table}-only", *libraries).splitlines()
    rows = [line.split()[-2:] for line in lines if len(line.split()) > 1]  # the others name the library
    strong = [name for kind, name in rows if kind not in "wv"]
    found = [name.replace("@@", "@").partition("@") for name in strong]
    return {(name, version) for name, _, version in found}


def needed(libraries: Iterable[Path]) -> Iterator[Path]:
    """Yield the libraries of this machine that libraries are linked with, at any depth."""
    for line in output("ldd", *libraries).splitlines():
        path = Path(line.partition("=>")[2].split("(")[0].strip())
        if path.is_absolute() and path.name not in ABSENT:
            yield path


def is_data(symbol: str) -> bool:
    """Whether a C++ symbol is a variable, a vtable or type information: none has parameters."""
    readable = output("c++filt", symbol).strip()
    return readable.startswith(("vtable for ", "typeinfo ")) or (symbol[:2] == "_Z" and "(" not in readable)


def stand_in(soname: str, names: Iterable[str], error: int, *arguments: str | Path) -> None:
    """Build a library of functions that answer ``error`` and of empty data. Written ones go before."""
    code = LIBRARIES / f"{soname}.c"
    weak = "__attribute__((weak))"
    code.write_text(
        "".join(
            f"{weak} char {name}[1024];\n"
            if is_data(name)
            else f"{weak} int {name}(void) {{ return {error}; }}\n"
            for name in sorted(names)
        )
    )
    link(soname, code, *arguments)


def stand_in_versioned(runtime: Runtime, undefined: set[tuple[str, str]]) -> None:
    """Build a library of ROCm with the symbol versions that MORI is bound to."""
    wanted = {(name, version) for name, version in undefined if version.startswith(runtime.versions)}
    script = LIBRARIES / f"{runtime.soname}.map"
    with script.open("w") as lines:
        for each in sorted({version for _, version in wanted}):
            members = sorted(name for name, version in wanted if version == each)
            print(each, "{ global:", *(f"{name};" for name in members), "};", file=lines)
    names = [name for name, _ in wanted]
    sources = [HERE / source for source in runtime.sources]
    stand_in(runtime.soname, names, runtime.error, f"-Wl,--version-script,{script}", *sources)


def main() -> None:
    """Build everything from nothing."""
    shutil.rmtree(LIBRARIES, ignore_errors=True)
    PCI_FOLDER.mkdir(parents=True)
    for soname, sources in DLOPENED.items():
        link(soname, f'-DPCI_FOLDER="{PCI_FOLDER}"', *(HERE / source for source in sources))

    mori = sorted((PACKAGES / "mori").glob("*.so"))
    if not mori:
        sys.exit(f"{PACKAGES}/mori holds no library: pip install amd_mori==1.2.4")
    undefined = symbols("undefined", mori)
    for runtime in ROCM:
        stand_in_versioned(runtime, undefined)
    present = {name for name, _ in symbols("defined", [*mori, *needed(mori)])}
    missing = {
        name for name, version in undefined if not version and not name.startswith(("Py", "_Py"))
    } - present
    for soname in SERVICES:
        stand_in(soname, missing if soname == SERVICES[0] else (), 0)

    shutil.copy(HERE / "torch_stand_in.py", PACKAGES / "torch.py")
    launcher = ENVIRONMENT / "run"
    launcher.write_text(LAUNCHER)
    launcher.chmod(0o755)


if __name__ == "__main__":
    main()
