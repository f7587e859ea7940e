"""File descriptors of this process by kind, and its TCP sockets by whose they are and by state.

A library that leaks a socket for every peer that left shows here long before the limit is reached.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import attrs

__all__ = ["OWNERS", "SOCKET_STATES", "Descriptors", "TCPSocket", "look"]

KINDS = (
    ("socket", re.compile(r"socket:")),
    ("pipe", re.compile(r"pipe:")),
    ("eventfd", re.compile(r"anon_inode:\[?eventfd")),
    ("eventpoll", re.compile(r"anon_inode:\[?eventpoll")),
    ("device", re.compile(r"/dev/(?!shm/|null$)")),
    ("file", re.compile(r"/")),
    ("other", re.compile(r"")),
)
OWNERS = ("control", "bootstrap", "engine_or_application")
SOCKET_STATES = ("listening", "connecting", "established", "closing", "close_wait")
_STATES = {
    1: "established",
    2: "connecting",
    3: "connecting",
    4: "closing",
    5: "closing",
    6: "closing",
    7: "closing",
    8: "close_wait",
    9: "closing",
    10: "listening",
    11: "closing",
}
"""By the kernel's number. CLOSE_WAIT: the peer has closed, and this process has not, which is a leak if it
stays."""


@attrs.frozen
class TCPSocket:
    """A TCP socket of this process: its ports (0: none) and its state, one of ``SOCKET_STATES``."""

    port: int
    peer_port: int
    state: str


@attrs.frozen
class Descriptors:
    """What this process has open: descriptors by kind, the most that it may have, and TCP sockets."""

    kinds: Mapping[str, int]
    limit: int
    sockets: tuple[TCPSocket, ...]

    def owned(self, control: Collection[int], bootstrap: Collection[int]) -> Counter[tuple[str, str]]:
        """Return how many TCP sockets there are by owner and state.

        ``control`` and ``bootstrap`` are the ports, of either end, by which those are told. What is left
        is the engine's or the application's: nothing tells these apart from outside.
        """
        return Counter((_owner(socket, control, bootstrap), socket.state) for socket in self.sockets)


def look() -> Descriptors:
    """Return what this process has open now; Linux."""
    targets = list(_targets())
    inodes = {int(found[1]) for target in targets if (found := re.fullmatch(r"socket:\[(\d+)\]", target))}
    rows = [row for table in ("tcp", "tcp6") for row in _rows(Path("/proc/self/net") / table, inodes)]
    kinds = dict.fromkeys((kind for kind, _ in KINDS), 0) | Counter(map(_kind, targets))
    return Descriptors(kinds, resource.getrlimit(resource.RLIMIT_NOFILE)[0], tuple(rows))


def _owner(socket: TCPSocket, control: Collection[int], bootstrap: Collection[int]) -> str:
    for owner, ports in zip(OWNERS, (control, bootstrap), strict=False):
        if socket.port in ports or socket.peer_port in ports:
            return owner
    return OWNERS[-1]


def _kind(target: str) -> str:
    return next(kind for kind, pattern in KINDS if pattern.match(target))


def _targets() -> Iterable[str]:
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of this listing, and what was closed meanwhile
            yield os.readlink(f"/proc/self/fd/{entry}")


def _rows(path: Path, inodes: Collection[int]) -> Iterator[TCPSocket]:
    """Yield the rows of a table that are ours: number, local, remote, state, ..., inode as the tenth."""
    try:
        lines = path.read_bytes().splitlines()[1:]
    except OSError:  # no IPv6 here
        return
    for line in lines:
        fields = line.split()
        if int(fields[9]) in inodes:
            local, remote = (int(fields[n].rpartition(b":")[2], 16) for n in (1, 2))
            yield TCPSocket(local, remote, _STATES.get(int(fields[3], 16), "closing"))
