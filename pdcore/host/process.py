"""Which process a peer is, and whether that process has ended: for processes of this machine, proven.

A pid alone names nothing: it is a number of one pid namespace of one boot, and is used again.
"""

from __future__ import annotations

import functools
import os
import select
from enum import Enum
from pathlib import Path

import attrs

from pdcore.model import Deadline

__all__ = ["ProcessIdentity", "ProcessLife", "boot_id", "is_stopped", "life_of", "namespace", "start_time"]


class ProcessLife(Enum):
    """What is known of a process. One that is stopped or hangs LIVES."""

    LIVES = "it lives"
    ENDED = "it has ended"
    OUT_OF_SIGHT = "it cannot be seen from here"


@attrs.frozen
class ProcessIdentity:
    """One process of one boot of one machine, for ever.

    ``boot`` is the kernel's boot id, and ``started`` in clock ticks since boot. ``pids``, ``network`` and
    ``clock`` are the inodes of the namespaces that its pid is a number of, that its sockets are in, and that
    its start is told by.
    """

    boot: str
    pids: int
    network: int
    clock: int
    pid: int
    started: int

    @classmethod
    def here(cls) -> ProcessIdentity:
        """Return this process."""
        pid = os.getpid()
        # Where /proc belongs to another pid namespace nobody could be found by the pid that we know.
        ours = os.readlink("/proc/self") == str(pid)
        pids = namespace("pid") if ours else 0
        started = start_time(pid) if ours else None
        return cls(boot_id(), pids, namespace("net"), namespace("time"), pid, started or 0)

    def __str__(self) -> str:
        return f"process {self.pid}"

    def in_sight(self) -> bool:
        """Whether its pid and its start mean the same here: the same boot and the same namespaces."""
        here = ProcessIdentity.here()
        return bool(here.pids) and self._numbers == here._numbers

    def lives_beside(self, other: ProcessIdentity) -> bool:
        """Whether it sees another process, and its sockets, as that sees itself."""
        mine, theirs = (*self._numbers, self.network), (*other._numbers, other.network)
        return mine == theirs and bool(self.pids and self.network)

    def shares_network(self) -> bool:
        """Whether its sockets are those of this network namespace."""
        return (self.boot, self.network) == (boot_id(), namespace("net")) and self.network != 0

    @property
    def _numbers(self) -> tuple[str, int, int]:
        return self.boot, self.pids, self.clock


def life_of(process: ProcessIdentity, deadline: Deadline | None = None) -> ProcessLife:
    """Wait for the end of a process, at most until the deadline; None: only look.

    ENDED: all its threads have, so that no instruction of it runs any more, and its descriptors and its
    memory are given back. A zombie that nobody reaps has ended; a first thread that ended alone has not.
    """
    if not process.in_sight():
        return ProcessLife.OUT_OF_SIGHT
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return ProcessLife.ENDED
    except OSError:  # no descriptor is free: nothing can be said now
        return ProcessLife.OUT_OF_SIGHT
    try:
        if start_time(process.pid) != process.started:  # the pid is free or used again
            return ProcessLife.ENDED
        end = select.poll()
        end.register(handle, select.POLLIN)
        return (
            ProcessLife.ENDED
            if end.poll(1000 * deadline.remaining() if deadline else 0)
            else ProcessLife.LIVES
        )
    finally:
        os.close(handle)


def is_stopped(process: ProcessIdentity) -> bool:
    """Whether a process is seen to stand still by a signal or a debugger; one out of sight is not."""
    fields = _fields(process.pid) if process.in_sight() else None
    return fields is not None and int(fields[_STARTED]) == process.started and fields[_STATE] in b"Tt"


@functools.cache
def boot_id() -> str:
    """Return what tells this boot of this machine from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def namespace(kind: str) -> int:
    """Return the inode of this process's namespace of a kind (pid, net, time); 0 if the kernel has none."""
    try:
        return Path(f"/proc/self/ns/{kind}").stat().st_ino
    except FileNotFoundError:
        return 0


def start_time(pid: int) -> int | None:
    """Return when process ``pid`` started (clock ticks since boot), None when there is no such process."""
    fields = _fields(pid)
    return None if fields is None else int(fields[_STARTED])


_STATE, _STARTED = 0, 19
"""Places among the fields that follow the name."""


def _fields(pid: int) -> list[bytes] | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name, which may hold spaces and parentheses.
    return stat[stat.rindex(b")") + 2 :].split()
