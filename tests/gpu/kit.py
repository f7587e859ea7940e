"""What a machine with a GPU and no network lacks, in one file: ``python tests/gpu/kit.py nixl mooncake``.

Downloads wheels for that machine's Python, leaves out what pdcore never loads, and packs the rest, with
the system libraries that the engines link, into ``.gpu-kit/site.tar.xz``. torch, numpy, attrs, pluggy,
aiohttp, rich, packaging and pytest are there already.
"""

from __future__ import annotations

import argparse
import ctypes.util
import fnmatch
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

KIT = Path(".gpu-kit")
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
NEEDED = ("msgspec>=0.19,<0.23", "cattrs>=24.1,<27", "pyzmq>=26,<28")
ENGINES = {"nixl": "nixl-cu13==1.5.1", "mooncake": "mooncake-transfer-engine-cuda13==0.3.14"}
UNUSED = {
    "nixl": ("nixl_ep_cu13/*", "*perftest*", "*.la"),
    "mooncake": ("mooncake/_store*", "mooncake/libmooncake_*", "mooncake/mooncake_*", "mooncake/_ep*"),
}
"""Expert parallelism, object stores and programs: half of the bytes."""
LIBRARIES = {"nixl": (), "mooncake": ("ibverbs", "mlx5", "numa", "curl")}
GLIBC = re.compile(r"(ld-linux|lib(c|m|dl|rt|pthread|resolv|gcc_s|stdc\+\+))[-.]")
MOST = 60 * 2**20
"""Bytes of the kit: 64 MiB may travel, with the working tree."""


def download(wanted: list[str], folder: Path) -> None:
    """Download wheels for the machine's Python, and nothing that they depend on."""
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--implementation", "cp", *platforms, "--dest", str(folder)]
    subprocess.run([*command, *wanted], check=True)


def unpack(folder: Path, site: Path, unused: list[str]) -> None:
    """Unpack wheels, without the files of these patterns."""
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
            wanted = [n for n in names if not any(fnmatch.fnmatch(n, pattern) for pattern in unused)]
            archive.extractall(site, wanted)


def libraries(names: list[str]) -> dict[str, Path]:
    """Return system libraries and all that they link, those of glibc aside: name -> file."""
    found: dict[str, Path] = {}
    for name in names:
        soname = ctypes.util.find_library(name)
        if soname is None:
            sys.exit(f"lib{name} is not installed here: apt-get install {name}, or make test once")
        # ``ldd`` of a library that only has to be named: the loader finds it as it would for the engine.
        told = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
        where = next(line.split(" => ")[1] for line in told.splitlines() if line.strip().startswith(soname))
        found[soname] = Path(where)
        linked = subprocess.run(["ldd", where], capture_output=True, text=True, check=True).stdout
        for line in linked.splitlines():
            if " => /" in line:
                needed, _, path = line.strip().partition(" => ")
                found[needed] = Path(path.split()[0])
    return {name: path for name, path in found.items() if not GLIBC.match(name)}


def main() -> None:
    """Make the kit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", nargs="+", choices=sorted(ENGINES), metavar="nixl|mooncake")
    engines = parser.parse_args().engines
    KIT.mkdir(exist_ok=True)
    packed = KIT / "site.tar.xz"
    with tempfile.TemporaryDirectory() as name:
        wheels, site = Path(name, "wheels"), Path(name, "site")
        download([*NEEDED, *(ENGINES[engine] for engine in engines)], wheels)
        unpack(wheels, site, [pattern for engine in engines for pattern in UNUSED[engine]])
        with tarfile.open(packed, "w:xz", preset=1) as archive:
            archive.add(site, "site")
            for soname, path in libraries([lib for e in engines for lib in LIBRARIES[e]]).items():
                archive.add(path.resolve(), f"lib/{soname}")
    size = packed.stat().st_size
    print(f"{packed}: {size / 2**20:.1f} MiB for Python {PYTHON} with {', '.join(engines)}")
    if size > MOST:
        sys.exit(f"it is larger than {MOST >> 20} MiB: take one engine at a time")


if __name__ == "__main__":
    main()
