"""TCP connections of this process, and what the kernel holds of them: bytes sent but not acknowledged, and
bytes that arrived but were not read. Read from ``/proc/self/net``.

A process that has ended sends nothing new, but its kernel goes on sending what it had been given, and what
has arrived waits until somebody reads it. Who wants to know that no byte can come any more looks first at
the far ends (:class:`Unsent`), then at the own ones (:class:`Unread`): what a far end has got rid of has
arrived by then. Each connection must be seen empty once, not all at the same time.
"""

from __future__ import annotations

import contextlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import attrs

__all__ = ["TCPConnection", "Table", "Unread", "Unsent", "orphans_with_bytes"]

_MAPPED = "0000000000000000FFFF0000"
"""How an IPv4 address begins where it is written as an IPv6 one."""

SYN_RECV, LISTEN = 3, 10
SAID_END = {4, 9, 11}
"""FIN_WAIT1, LAST_ACK, CLOSING: our own end of stream counts as one byte that is not acknowledged."""
HEARD_END = {6, 8, 9, 11}
"""TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING: the far end's end of stream counts as one that is not read."""
LEFT = {4, 5, 6, 7, 9, 11}
"""States in which a connection that no process owns any more is read by nobody."""

Ends = tuple[tuple[str, int], tuple[str, int]]
"""This end and the far one: address (hexadecimal, as the kernel writes it) and port."""


@attrs.frozen
class TCPConnection:
    """One row of the kernel's table; ``inode`` is 0 if no process owns it."""

    ends: Ends
    state: int
    unsent: int
    unread: int
    inode: int


@attrs.frozen
class Table:
    """All connections of this network namespace by their ends, and which of them this process reads."""

    all: Mapping[Ends, TCPConnection]
    ours: frozenset[Ends]

    @classmethod
    def read(cls) -> Table:
        """Return the table as it is now; it is not read in one piece."""
        owned = own_inodes()
        rows = [row for name in ("tcp", "tcp6") for row in _rows(Path("/proc/self/net") / name)]
        doors = {row.ends[0][1] for row in rows if row.state == LISTEN and row.inode in owned}
        connections = {row.ends: row for row in rows if row.state != LISTEN}
        ours = frozenset(
            row.ends
            for row in connections.values()
            # Nobody has accepted those yet that wait to be; their bytes wait already.
            if row.inode in owned or (row.inode == 0 and row.ends[0][1] in doors and row.state not in LEFT)
        )
        return cls(connections, ours)


class _Emptying(ABC):
    """Connections of this process that were not yet seen empty since this was made."""

    def __init__(self) -> None:
        self._left: frozenset[Ends] | None = None

    def left(self) -> int:
        """Look again; return how many are left."""
        table = Table.read()
        before = table.ours if self._left is None else self._left
        self._left = frozenset(ends for ends in before if self._holds(table, ends))
        return len(self._left)

    @abstractmethod
    def _holds(self, table: Table, ends: Ends) -> bool:
        """Whether a connection of ours is not empty now."""


class Unsent(_Emptying):
    """Connections to which the far end, in this network namespace, still has bytes to send."""

    def _holds(self, table: Table, ends: Ends) -> bool:
        far = table.all.get((ends[1], ends[0]))
        return far is not None and far.unsent > (far.state in SAID_END)


class Unread(_Emptying):
    """Connections with bytes that this process has not read, or that it has not accepted."""

    def _holds(self, table: Table, ends: Ends) -> bool:
        here = table.all.get(ends)
        return here is not None and (here.state == SYN_RECV or here.unread > (here.state in HEARD_END))


def orphans_with_bytes() -> int:
    """Return how many connections of this network namespace the kernel still has bytes to send on for a
    process that has closed them or ended. Sockets that a process left to its children are not among them."""
    rows = [row for name in ("tcp", "tcp6") for row in _rows(Path("/proc/self/net") / name)]
    return sum(row.inode == 0 and row.state in SAID_END and row.unsent > 1 for row in rows)


def own_inodes() -> set[int]:
    """Return the inodes of this process's sockets."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if told := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/self/fd/{entry}")):
                found.add(int(told[1]))
    return found


def _rows(path: Path) -> list[TCPConnection]:
    try:
        lines = path.read_text().splitlines()[1:]
    except FileNotFoundError:  # no IPv6 here
        return []
    return [_row(line.split()) for line in lines]


def _row(fields: list[str]) -> TCPConnection:
    """Fields: number, local, remote, state, tx_queue:rx_queue, timer, retransmits, uid, timeout, inode."""
    unsent, unread = fields[4].split(":")
    ends = _end(fields[1]), _end(fields[2])
    return TCPConnection(ends, int(fields[3], 16), int(unsent, 16), int(unread, 16), int(fields[9]))


def _end(text: str) -> tuple[str, int]:
    address, port = text.split(":")
    return address.removeprefix(_MAPPED), int(port, 16)
