"""Why a peer is refused for its key: as an error, and as a frame."""

from __future__ import annotations

from enum import IntEnum

from pdcore.errors import AuthenticationError
from pdcore.wire.session import HEAD, MAGIC, Frames, Step

__all__ = ["Reason", "refusal", "refusal_in", "wrong_code"]

KEY = "PDCORE_AUTH_KEY (auth_key)"


class Reason(IntEnum):
    """Why a peer is refused; the value is what travels on the wire."""

    NO_KEY_HERE = 1
    KEY_REQUIRED = 2
    OTHER_KEY = 3
    NO_SESSION = 4

    def error(self, *, ours: bool) -> AuthenticationError:
        """Return the error of this reason: we refuse the peer (``ours``), or it refuses us."""
        side, other = ("this side", "the peer") if ours else ("the peer", "this side")
        same = "set the same PDCORE_AUTH_KEY on both sides, or on neither"
        happened, there_is, to_do = {
            Reason.NO_KEY_HERE: ("has no key", f"{other} has {KEY} set", same),
            Reason.KEY_REQUIRED: ("requires a key", f"{other} has no {KEY} or sent something unsealed", same),
            Reason.OTHER_KEY: ("has another key", f"the {KEY} of the two differ", same),
            Reason.NO_SESSION: (
                "knows no session",
                "it started anew, or nobody with the key ever spoke",
                "nothing, unless it lasts: who has the key begins a new session",
            ),
        }[self]
        return AuthenticationError(f"{side} {happened}", there_is, to_do)


def refusal_in(kind: int, payload: bytes) -> Reason | None:
    """Return the reason that a frame of this kind carries, if it is a refusal."""
    known = kind == Step.REFUSE and len(payload) == 1 and payload[0] in set(Reason)
    return Reason(payload[0]) if known else None


def refusal(reason: Reason) -> Frames:
    """Return the frame that tells a peer why."""
    return [HEAD.pack(MAGIC, Step.REFUSE) + bytes([reason])]


def wrong_code() -> AuthenticationError:
    """Return the error of a seal that does not fit."""
    return AuthenticationError(
        "a message with a wrong code was dropped",
        "it was forged, changed, repeated, or sealed with another key or in another session",
        "set the same PDCORE_AUTH_KEY on both sides, and let nothing else send to this port",
    )
