"""What happens to the connections of one socket: connected, authenticated, cut; as libzmq tells it.

libzmq does all of it on its own thread, which needs no interpreter, and reports it through a PAIR socket
(``zmq_socket_monitor``) that the owner of the socket polls with the rest.
"""

from __future__ import annotations

import struct
from enum import Enum

import attrs
import zmq

from pdcore.wire.frames import readable

__all__ = ["Connection", "ConnectionEvent", "Monitor"]


class Connection(Enum):
    """What happened to a connection; the value is libzmq's number of the event."""

    CONNECTED = int(zmq.EVENT_CONNECTED)
    """TCP is up, the handshake begins. Value: the descriptor."""
    DELAYED = int(zmq.EVENT_CONNECT_DELAYED)
    """A connect has begun. Value: the errno, of no use."""
    RETRIED = int(zmq.EVENT_CONNECT_RETRIED)
    """The next connect is put off. Value: by how many milliseconds."""
    ACCEPTED = int(zmq.EVENT_ACCEPTED)
    """A peer has connected, the handshake begins. Value: the descriptor."""
    HANDSHAKEN = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    """Both sides have proven what they must: messages flow from now on. Value: 0."""
    FAILED = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
    """The handshake ended without a reason, mostly since the peer hung up. Value: the errno."""
    MISFIT = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    """The peer speaks the protocol wrongly, or another mechanism. Value: a ``ZMQ_PROTOCOL_ERROR_...``."""
    DENIED = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    """The bound side did not admit the dialling one. Value: the status, as 400."""
    CLOSED = int(zmq.EVENT_CLOSED)
    """A connection, or an attempt at one, was given up. Value: the descriptor."""
    DISCONNECTED = int(zmq.EVENT_DISCONNECTED)
    """A connection ended, whoever ended it. Value: the descriptor, which is closed next."""


_HEAD = struct.Struct("=Hi")
_ALL = sum(kind.value for kind in Connection)


@attrs.frozen
class ConnectionEvent:
    """One event; what ``value`` is depends on ``what``.

    ``endpoint`` is the address that was dialled, or the one that is bound; libzmq does not tell the
    address of who connected.
    """

    what: Connection
    value: int
    endpoint: str


class Monitor:
    """The events of one socket, from before it binds or connects. Belongs to the socket's owner thread.

    ``socket`` is to be polled and closed by nobody else. Close the monitor before the socket.
    """

    def __init__(self, watched: zmq.Socket[bytes]) -> None:
        self._watched = watched
        address = f"inproc://pdcore-monitor-{watched.fileno()}"
        watched.monitor(address, _ALL)
        try:
            self.socket: zmq.Socket[bytes] = watched.context.socket(zmq.PAIR)
        except zmq.ZMQError:
            watched.disable_monitor()
            raise
        # libzmq's thread waits for room when this is full: it must never be held up by our thread.
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(address)

    def events(self, most: int) -> list[ConnectionEvent]:
        """Return what has happened since the last call, at most so much; never waits."""
        events: list[ConnectionEvent] = []
        while len(events) < most and readable(self.socket):
            head, endpoint = self.socket.recv_multipart(zmq.NOBLOCK)
            what, value = _HEAD.unpack(head)
            events.append(ConnectionEvent(Connection(what), value, endpoint.decode()))
        return events

    def close(self) -> None:
        """Stop listening."""
        self._watched.disable_monitor()
        self.socket.close(linger=0)
