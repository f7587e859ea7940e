"""Authentication of control messages by a shared key, without clocks.

Who dials sends HELLO with a nonce of its own; who is bound answers CHALLENGE with another, and a code
over both by which it proves that it has the key. From the key, both nonces and the dialler's identity
each side derives two keys, one per direction, that hold for this session only. Every message then
travels behind a SEAL: a number that must rise, and the HMAC-SHA256 of the number and of all frames
with their lengths. So a message is worth nothing in another session, in the other direction, from
another identity, a second time, or after a later one; a session that is over cannot be replayed, since
both sides put fresh randomness in. A key is rotated by restarting both sides with another one.

A peer that restarted says REFUSE(no session) and the dialler begins anew; nobody but who is in the
connection's path can say so falsely, and could cut it as well. REFUSE carries a reason and no code: it
ends a pairing with a clear error and opens nothing. A wrong code in a known session gets no answer.

Not protected: what is said can be read; connections can be cut, delayed or taken over by another
identity claim, which ends pairings but forges nothing; holders of the key are not told apart, and who
can reroute a connection may lead a dialler to another holder; a weak key can be guessed offline from
any code; and the engine's own data plane is the engine's matter.
"""

from __future__ import annotations

import hmac
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import attrs

from pdcore.errors import AuthenticationError
from pdcore.secret import AuthKey
from pdcore.wire.refusal import Reason, refusal, refusal_in, wrong_code
from pdcore.wire.session import HEAD, MAGIC, Frame, Frames, Session, Step

__all__ = ["KeyedGate", "OpenGate"]

NONCE_BYTES = 32
MOST_CHALLENGED = 1_024
MOST_SESSIONS = 65_536

RouteT = TypeVar("RouteT", bound=bytes)


FrameT = TypeVar("FrameT", bound=Frame)


Put = Callable[[RouteT, Frames], None]
Refused = Callable[[RouteT, AuthenticationError, bool], None]
"""Called with what is amiss with a route; True: the peer will have nothing to do with us."""


class OpenGate(Generic[RouteT]):
    """What all frames of a channel pass when there is no key: it stops only those of a peer that has one.

    ``put`` is called with what goes out, ``refused`` with what is amiss. Belongs to the channel's thread.
    """

    def __init__(self, put: Put[RouteT], refused: Refused[RouteT]) -> None:
        self._put, self._refused = put, refused
        self._dialled: set[RouteT] = set()

    def dialled(self, route: RouteT) -> None:
        """Note it: what it refuses is meant for us."""
        self._dialled.add(route)

    def forget(self, route: RouteT) -> None:
        """Forget it."""
        self._dialled.discard(route)

    def send(self, route: RouteT, frames: Frames) -> None:
        """Put a message out."""
        self._put(route, frames)

    def open(self, route: RouteT, frames: list[FrameT]) -> list[FrameT] | None:
        """Return the frames, unless they are of a peer that has a key."""
        kind, payload = _kind(frames)
        if not kind:
            return frames
        if route in self._dialled:
            if (reason := refusal_in(kind, payload)) is not None:
                self._refused(route, reason.error(ours=False), True)
        else:
            self._refused(route, Reason.NO_KEY_HERE.error(ours=True), False)
            if kind != Step.REFUSE:
                self._put(route, refusal(Reason.NO_KEY_HERE))
        return None


@attrs.define(eq=False)
class _Call:
    """A dialled connection: its nonce, and what waits for its session."""

    hello: bytes
    session: Session | None = None
    held: list[Frames] = attrs.field(factory=list)


class KeyedGate(Generic[RouteT]):
    """The same with a key: seals what goes out, lets pass what is sealed rightly.

    ``identity`` is the one under which this channel dials. Of peers that dialled us, at most
    ``MOST_CHALLENGED`` have yet to prove themselves and ``MOST_SESSIONS`` have; one that is forgotten
    for another begins anew.
    """

    def __init__(self, key: AuthKey, identity: bytes, put: Put[RouteT], refused: Refused[RouteT]) -> None:
        self._key, self._identity = key, identity
        self._put, self._refused = put, refused
        self._calls: dict[RouteT, _Call] = {}
        self._challenged: OrderedDict[RouteT, Session] = OrderedDict()
        self._sessions: OrderedDict[RouteT, Session] = OrderedDict()

    def dialled(self, route: RouteT) -> None:
        """Begin a session."""
        self._calls[route] = _Call(b"")
        self._greet(route, self._calls[route])

    def forget(self, route: RouteT) -> None:
        """End the session and drop what waits for it."""
        self._calls.pop(route, None)

    def send(self, route: RouteT, frames: Frames) -> None:
        """Seal a message and put it out, once there is a session.

        Raises:
            AuthenticationError: the peer dialled us, and has no session.
        """
        call = self._calls.get(route)
        session = call.session if call is not None else self._sessions.get(route)
        if session is not None:
            self._put(route, session.seal(frames))
        elif call is not None:
            call.held.append(frames)
        else:
            raise Reason.NO_SESSION.error(ours=True)

    def open(self, route: RouteT, frames: list[FrameT]) -> list[FrameT] | None:
        """Return the frames behind a right seal; lead the handshake; refuse everything else."""
        kind, payload = _kind(frames)
        call = self._calls.get(route)
        if kind == Step.SEALED:
            seal, message = frames[0].buffer, frames[1:]
            if self._hears(call, seal, message) if call else self._admits(route, seal, message):
                return message
            if call or route in self._sessions or route in self._challenged:
                self._refused(route, wrong_code(), False)
            else:
                self._refused(route, Reason.NO_SESSION.error(ours=True), False)
                self._put(route, refusal(Reason.NO_SESSION))
        elif call is not None:
            self._on_answer(route, call, kind, payload)
        elif kind == Step.HELLO and len(payload) == NONCE_BYTES:
            self._on_hello(route, payload)
        else:
            reason = refusal_in(kind, payload)
            self._refused(route, (reason or Reason.KEY_REQUIRED).error(ours=reason is None), False)
            if reason is None:
                self._put(route, refusal(Reason.KEY_REQUIRED))
        return None

    # --- dialled from here -----------------------------------------------------------------

    def _greet(self, route: RouteT, call: _Call) -> None:
        call.hello, call.session = os.urandom(NONCE_BYTES), None
        self._put(route, [HEAD.pack(MAGIC, Step.HELLO) + call.hello])

    def _on_answer(self, route: RouteT, call: _Call, kind: int, payload: bytes) -> None:
        reason = refusal_in(kind, payload)
        if reason is not None and call.session is not None:
            # Whoever says it, a session ends for nothing but a better word: asked again, a peer that
            # started anew challenges us, or says once more that it will not.
            self._greet(route, call)
        elif reason is not None:
            if reason is not Reason.NO_SESSION:
                self._refused(route, reason.error(ours=False), True)
        elif kind == Step.CHALLENGE and call.session is None and len(payload) == 2 * NONCE_BYTES:
            challenge, proof = payload[:NONCE_BYTES], payload[NONCE_BYTES:]
            session = Session(self._key, self._identity, call.hello, challenge, dialled=True)
            if not hmac.compare_digest(proof, session.proof):
                self._put(route, refusal(Reason.OTHER_KEY))
                self._refused(route, Reason.OTHER_KEY.error(ours=False), True)
                return
            call.session, held, call.held = session, call.held, []
            for frames in held:
                self._put(route, session.seal(frames))
        else:
            self._refused(route, Reason.KEY_REQUIRED.error(ours=True), False)

    @staticmethod
    def _hears(call: _Call, seal: memoryview, message: Sequence[Frame]) -> bool:
        return call.session is not None and call.session.admits(seal, message)

    # --- dialled from there ----------------------------------------------------------------

    def _on_hello(self, route: RouteT, hello: bytes) -> None:
        session = Session(self._key, route, hello, os.urandom(NONCE_BYTES), dialled=False)
        self._challenged.pop(route, None)
        self._challenged[route] = session
        if len(self._challenged) > MOST_CHALLENGED:
            self._challenged.popitem(last=False)
        self._put(route, [HEAD.pack(MAGIC, Step.CHALLENGE) + session.challenge + session.proof])

    def _admits(self, route: RouteT, seal: memoryview, message: Sequence[Frame]) -> bool:
        session, new = self._sessions.get(route), self._challenged.get(route)
        if session is not None and session.admits(seal, message):
            self._sessions.move_to_end(route)
            return True
        if new is not None and new.admits(seal, message):
            del self._challenged[route]
            self._sessions[route] = new
            self._sessions.move_to_end(route)
            if len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
            return True
        return False


def _kind(frames: Sequence[Frame]) -> tuple[int, bytes]:
    """Return what kind of authentication frame comes first (0: none), and what it carries."""
    head = frames[0].buffer if frames else memoryview(b"")
    if len(head) < HEAD.size or head[:4] != MAGIC:
        return 0, b""
    kind = head[4]
    return kind, b"" if kind == Step.SEALED else bytes(head[HEAD.size :][: 2 * NONCE_BYTES + 1])
