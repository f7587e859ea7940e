"""Why handshakes fail: pure thinking over what libzmq tells, for the side that dials and the bound one.

libzmq tells a side only what it saw itself. Of two that speak different mechanisms, the one that reads the
other's greeting first knows, and hangs up on the other; a key that differs is seen by the bound side
alone. So a dialler that is hung up on twice asks what the peer speaks (``greeting``), and
believes the answer when it is hung up on once more: a peer that was killed, or a proxy before it, does
the like once, or without a greeting.
"""

from __future__ import annotations

import errno

import attrs
import zmq

from pdcore.errors import AuthenticationError
from pdcore.wire.monitor import Connection, ConnectionEvent
from pdcore.wire.sockets import HANDSHAKE_SECONDS, Route

__all__ = ["CURVE", "NULL", "Handshakes", "bound_side_error"]

CURVE, NULL = "CURVE", "NULL"
_KEY = "PDCORE_AUTH_KEY (auth_key)"
_SAME = "set the same PDCORE_AUTH_KEY on both sides, or on neither"
_HUNG_UP = frozenset({errno.EPIPE, errno.ECONNRESET})
_ASKED_AFTER = 2


@attrs.define
class _Dialled:
    """A dialled peer: whether a handshake goes on, how often it hung up in a row, what it said when asked."""

    shaking: bool = False
    hung_up: int = 0
    speaks: str | None = None


class Handshakes:
    """The handshakes of the peers that one channel dialled. Belongs to the channel's thread."""

    def __init__(self, *, keyed: bool) -> None:
        self._keyed = keyed
        self._calls: dict[Route, _Dialled] = {}

    def heard(self, route: Route, event: ConnectionEvent) -> AuthenticationError | None:
        """Take in what happened to a dialled connection; return why the peer refuses us, once it is clear."""
        call = self._calls.setdefault(route, _Dialled())
        was_shaking, call.shaking = call.shaking, event.what is Connection.CONNECTED
        if event.what in (Connection.HANDSHAKEN, Connection.CLOSED):
            self._calls[route] = _Dialled()
        elif event.what is Connection.DISCONNECTED and was_shaking:
            return _no_control_port("it sent what is no handshake")
        elif event.what is Connection.MISFIT:
            if event.value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                return self._refused_by(NULL if self._keyed else CURVE)
            return (
                self._refused_by(CURVE)
                if self._keyed
                else _no_control_port(f"libzmq names protocol error {event.value:#x}")
            )
        elif event.what is Connection.DENIED:
            return self._refused_by(CURVE)
        elif event.what is Connection.FAILED and event.value in _HUNG_UP:
            call.hung_up += 1
            if call.speaks not in (None, CURVE, NULL):
                return _no_control_port(f"it speaks {call.speaks or 'another protocol'}")
            if call.speaks is not None and (self._keyed or call.speaks == CURVE):
                return self._refused_by(call.speaks)
        return None

    def wants_to_ask(self, route: Route) -> bool:
        """Whether the peer should be asked what it speaks; asking again replaces an earlier question."""
        call = self._calls.get(route)
        return call is not None and call.hung_up >= _ASKED_AFTER and call.speaks is None

    def speaks(self, route: Route, mechanism: str) -> None:
        """Note what the peer said."""
        if route in self._calls:
            self._calls[route].speaks = mechanism

    def forget(self, route: Route) -> None:
        """Forget a peer that was hung up on."""
        self._calls.pop(route, None)

    def _refused_by(self, speaks: str) -> AuthenticationError:
        if not self._keyed:
            return AuthenticationError("the peer requires a key", f"this side has no {_KEY}", _SAME)
        if speaks == NULL:
            return AuthenticationError("the peer has no key", f"this side has {_KEY} set", _SAME)
        return AuthenticationError("the peer has another key", f"the {_KEY} of the two differ", _SAME)


def bound_side_error(event: ConnectionEvent, *, keyed: bool) -> AuthenticationError:
    """Return why a connection of somebody that dialled us ended in its handshake."""
    if event.what is Connection.FAILED:
        return AuthenticationError(
            "it did not finish the handshake",
            f"it hung up, or said nothing for {HANDSHAKE_SECONDS:g} s: it looked whether this port is open, "
            f"or its {_KEY} is not that of this side",
            _SAME,
        )
    if event.value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        if keyed:
            return AuthenticationError("this side requires a key", f"the peer has no {_KEY}", _SAME)
        return AuthenticationError("this side has no key", f"the peer has {_KEY} set", _SAME)
    if keyed and event.value in (zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC, 400):
        there_is = f"the {_KEY} of the two differ, or what it said was changed on its way"
        return AuthenticationError("the peer has another key", there_is, _SAME)
    return _no_control_port(f"libzmq names protocol error {event.value:#x}")


def _no_control_port(there_is: str) -> AuthenticationError:
    return AuthenticationError(
        "the peer does not speak the control protocol",
        there_is,
        "let nothing else than pdcore's managers use this port, in matching versions",
    )
