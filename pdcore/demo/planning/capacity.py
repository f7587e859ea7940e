"""What this machine has left for a run, and whether that is enough: asked before a process starts.

A run that does not fit is ended by the kernel, in the middle, and with it perhaps something else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import attrs

from pdcore.errors import PDCoreError

__all__ = ["PROCESS_BYTES", "CapacityError", "Estimate", "FreeMemory", "shm_shortage"]

PROCESS_BYTES = 96 * 2**20
"""What a worker takes beside its pools: interpreter, libraries, engine (measured: 63 to 90 MiB)."""

SHM_BYTES = 5 * 2**20
"""What an engine that shares memory takes of it for a process (measured over UCX: 4.2 MiB)."""

SHM = Path("/dev/shm")  # noqa: S108 - only looked at


class CapacityError(PDCoreError):
    """The machine has not what a run would take."""


@attrs.frozen
class FreeMemory:
    """Bytes that can be had, and what sets that limit."""

    nbytes: int
    limit: str

    @classmethod
    def here(cls, root: Path = Path("/")) -> FreeMemory:
        """Return the least of what the machine has available and what its control groups leave."""
        return min(_limits(root), key=lambda free: free.nbytes)


@attrs.frozen
class Estimate:
    """The memory that a run will take: its pools together, and its processes."""

    pools: int
    processes: int

    @property
    def nbytes(self) -> int:
        """Bytes in all."""
        return self.pools + self.processes * PROCESS_BYTES

    def refuse_more_than(self, free: FreeMemory, advice: str) -> None:
        """Check that it fits.

        Raises:
            CapacityError: it does not; the figures are in the message.
        """
        if self.nbytes > free.nbytes:
            raise CapacityError(
                f"this run would take about {_gib(self.nbytes)} GiB of memory, which are not there",
                f"{_gib(free.nbytes)} GiB ({free.limit}); pools of {_gib(self.pools)} GiB in "
                f"{self.processes} processes of about {PROCESS_BYTES >> 20} MiB beside",
                advice,
            )


def shm_shortage(processes: int) -> str | None:
    """Return a warning if engines that share memory between processes may find too little of it, or None."""
    with contextlib.suppress(OSError):
        found = os.statvfs(SHM)
        free = found.f_bavail * found.f_frsize
        if free < processes * SHM_BYTES:
            return (
                f"{SHM} has {free >> 20} MiB left; an engine that shares memory there would take about "
                f"{processes * SHM_BYTES >> 20} MiB for {processes} processes (docker run --shm-size sets it)"
            )
    return None


def _limits(root: Path) -> Iterator[FreeMemory]:
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, value = line.split(":")
        if name == "MemAvailable":
            yield FreeMemory(int(value.split()[0]) * 1024, "MemAvailable of /proc/meminfo")
    for path in _groups(root):
        with contextlib.suppress(OSError, ValueError):
            yield _left(path)


def _groups(root: Path) -> Iterator[Path]:
    """Yield the memory control groups that this process is in, of either version, the innermost first.

    In a container the path is often one that only the host can see: then the mounted root is its own.
    """
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        inner = mount / name.lstrip("/")
        yield from (path for path in (inner, *inner.parents) if path == mount or mount in path.parents)


def _left(group: Path) -> FreeMemory:
    """Return what a control group leaves; files that are only cached make room.

    Raises:
        OSError: there is no such group here.
        ValueError: it has no limit.
    """
    newer = (group / "memory.max").exists()
    limit = int((group / ("memory.max" if newer else "memory.limit_in_bytes")).read_text())
    used = int((group / ("memory.current" if newer else "memory.usage_in_bytes")).read_text())
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    cached = int(stat.get("inactive_file" if newer else "total_inactive_file", 0))
    return FreeMemory(limit - used + cached, f"the limit of the control group {group}")


def _gib(nbytes: int) -> str:
    return f"{max(nbytes, 0) / 2**30:.1f}"
