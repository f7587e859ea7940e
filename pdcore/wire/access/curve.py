"""The shared key as ZeroMQ's own CURVE: who has it is let in at the handshake, and nobody can listen.

The bound side's key pair is derived from the shared key, and so is its public half, which CURVE
(http://rfc.zeromq.org/spec:26) never puts on the wire: a dialler proves that it has the key by a first
command that only its owner can make, and the bound side by an answer that only the owner can give.
Whoever cannot is cut before any message. So there is no list of diallers to ask (ZAP): it would admit
everybody who gets that far, and make every handshake wait for the interpreter, which a loaded
process holds for seconds. Diallers' own pairs are random; sessions have forward secrecy, and nothing
of one can be repeated in another, in the other direction, or in another order.

Not protected: connections can be cut or delayed; holders of the key are not told apart; a weak key can be
guessed offline from a recorded handshake; and the engine's own data plane is the engine's matter. A key is
rotated by restarting all sides with another one.
"""

from __future__ import annotations

import zmq
from zmq.utils import z85

from pdcore.config.auth_key import AuthKey
from pdcore.errors import ConfigError, ConfigProblem

__all__ = ["CURVE_OVERHEAD_BYTES", "Curve", "require_curve"]

CURVE_OVERHEAD_BYTES = 64
"""More than encryption adds to a frame, which is 33."""


def require_curve(key: AuthKey | None) -> None:
    """Check that this libzmq can keep to the key, if there is one.

    Raises:
        ConfigError: it was built without CURVE.
    """
    if key is not None and not zmq.has("curve"):
        version = zmq.zmq_version()
        reason = f"needs a libzmq with CURVE, and {version} here has none; install pyzmq from its own wheel"
        raise ConfigError([ConfigProblem("auth_key", "configuration", reason)])


class Curve:
    """What a socket needs to be known by the shared key.

    Raises:
        ConfigError: this libzmq was built without CURVE.
    """

    def __init__(self, key: AuthKey) -> None:
        require_curve(key)
        self._secret = z85.encode(key.derive("pdcore control 2 bound side"))
        self._public = zmq.curve_public(self._secret)
        self._dialler = zmq.curve_keypair()

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Have a socket that will be bound let in only who has the key."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._secret)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._public)

    def introduce(self, socket: zmq.Socket[bytes]) -> None:
        """Have a socket that will dial prove that it has the key, and demand the same of its peer."""
        public, secret = self._dialler
        socket.setsockopt(zmq.CURVE_SERVERKEY, self._public)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, secret)
