"""Asks who listens at an address which mechanism it speaks, by the greeting of ZMTP 3 (23/ZMTP).

libzmq closes a connection of another mechanism so fast that its own greeting is mostly lost. This one
sends its greeting in two steps, and so hears the other's before it has said all.
"""

from __future__ import annotations

from contextlib import suppress

import zmq

from pdcore.wire.frames import readable

__all__ = ["Greeting"]

_OPENING = b"\xff" + bytes(8) + b"\x7f\x03"
"""Signature and major version."""
_NOT_AGAIN = 24 * 3600 * 1000
_MECHANISM = slice(12, 32)


class Greeting:
    """One question to one address, over a raw socket that is to be polled. Belongs to its owner's thread."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(zmq.STREAM)
        self.socket.setsockopt(zmq.LINGER, 0)
        # One that does not dial again at all (-1) drops what it has yet to hand out when the peer hangs up.
        self.socket.setsockopt(zmq.RECONNECT_IVL, _NOT_AGAIN)
        self.socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError:
            self.socket.close()
            raise
        self._heard = b""

    def answer(self) -> str | None:
        """Return the name of the mechanism once the peer has said it; never waits.

        It is empty for a peer that speaks another protocol.
        """
        while readable(self.socket):
            peer, said = self.socket.recv_multipart(zmq.NOBLOCK)
            if not said and not self._heard:
                with suppress(zmq.ZMQError):  # who has hung up already does not answer
                    self.socket.send_multipart([peer, _OPENING], zmq.NOBLOCK)
            self._heard = (self._heard + said)[: _MECHANISM.stop]
        if self._heard[:1] not in (b"", b"\xff"):
            return ""
        if len(self._heard) < _MECHANISM.stop:
            return None
        return self._heard[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")
