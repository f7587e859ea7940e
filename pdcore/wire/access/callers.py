"""Who connects to the bound socket, and whose handshake fails: libzmq tells the two apart from each other."""

from __future__ import annotations

import os
import socket

import attrs

from pdcore.wire.monitor import Connection, ConnectionEvent

__all__ = ["Callers", "Stranger"]

_FAILURES = frozenset({Connection.FAILED, Connection.MISFIT, Connection.DENIED})
SOMEBODY = "somebody who had gone already"


@attrs.frozen
class Stranger:
    """A connection that ended in its handshake: of which address (without the port), and how."""

    address: str
    how: ConnectionEvent


class Callers:
    """The open connections of one bound socket, by their descriptors. Belongs to the channel's thread.

    The address is read from the descriptor, which is libzmq's and may be closed by then: so it is only
    said in logs. There are no more entries than the process has descriptors.
    """

    def __init__(self) -> None:
        self._addresses: dict[int, str] = {}
        self._failure: ConnectionEvent | None = None

    def heard(self, event: ConnectionEvent) -> Stranger | None:
        """Take in an event; return who failed, once it is known.

        A failure names no descriptor; that of the connection which is closed next is meant. (Where nothing is
        closed, something was changed on its way after the handshake: libzmq takes its own report of that for
        a reason to wait, and reads no more from there.)
        """
        failure, self._failure = self._failure, None
        address = SOMEBODY
        if event.what is Connection.ACCEPTED:
            self._addresses[event.value] = _peer_of(event.value)
        elif event.what is Connection.DISCONNECTED:
            address = self._addresses.pop(event.value, SOMEBODY)
        elif event.what in _FAILURES:
            self._failure = event
        return Stranger(address, failure) if failure is not None else None


def _peer_of(descriptor: int) -> str:
    try:
        copy = os.dup(descriptor)
    except OSError:
        return SOMEBODY
    try:
        connection = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return SOMEBODY
    with connection:
        try:
            return str(connection.getpeername()[0])
        except (OSError, IndexError):
            return SOMEBODY
