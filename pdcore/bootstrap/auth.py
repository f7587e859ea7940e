"""Authentication of bootstrap requests and their answers by a shared key, without clocks.

A client fetches a challenge, and sends with its request a nonce of its own and the HMAC-SHA256 of
challenge, nonce, method, path with query, and body. A challenge says, under a code of the service's
own, when on the service's clock it was made: it holds for ``LIFE`` seconds, for this life of the service,
and for one request. So a request is worth nothing twice; one that is held back may still be delivered
within ``LIFE``. Only what carries a right code is remembered, so a stranger can fill nothing. The
answer carries the HMAC of the request's code, the status and the body, and so fits no other request.

Not protected: what is said can be read and held up; ``/health`` answers everybody.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections import OrderedDict
from collections.abc import Mapping

import attrs

from pdcore.config.auth_key import AuthKey, code
from pdcore.model import Clock

__all__ = [
    "ANSWER_CODE",
    "CHALLENGE_PATH",
    "LIFE",
    "SPENT",
    "UNAUTHORISED",
    "Challenges",
    "Credentials",
    "answer_code",
]

LIFE = 60.0
CHALLENGE_PATH = "/v1/challenge"
ANSWER_CODE = "PDCore-Answer-Code"
UNAUTHORISED, SPENT = 401, 412
_HEADERS = ("PDCore-Challenge", "PDCore-Nonce", "PDCore-Code")
_MADE = struct.Struct(">d16s")


@attrs.frozen
class Credentials:
    """What a request carries beside its body, in its headers."""

    challenge: str
    nonce: str
    code: str

    @classmethod
    def sign(cls, key: AuthKey, challenge: str, method: str, path: str, body: bytes) -> Credentials:
        """Return the credentials of one request; ``path`` has the query, as it is sent."""
        nonce = os.urandom(16).hex()
        return cls(challenge, nonce, _request_code(key, challenge, nonce, method, path, body))

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Credentials:
        """Return those that a request claims to have."""
        return cls(*(headers.get(name, "") for name in _HEADERS))

    @property
    def headers(self) -> dict[str, str]:
        """The headers to send."""
        return dict(zip(_HEADERS, attrs.astuple(self), strict=True))

    def fit(self, key: AuthKey, method: str, path: str, body: bytes) -> bool:
        """Whether the code is right for this request."""
        right = _request_code(key, self.challenge, self.nonce, method, path, body)
        return hmac.compare_digest(right.encode(), self.code.encode())


def _request_code(key: AuthKey, challenge: str, nonce: str, method: str, path: str, body: bytes) -> str:
    parts = (part.encode() for part in (challenge, nonce, method, path))
    return code(key.derive("pdcore bootstrap 1 request"), *parts, body).hex()


def answer_code(key: AuthKey, request: str, status: int, body: bytes) -> str:
    """Return the code of an answer to the request with this code."""
    return code(key.derive("pdcore bootstrap 1 answer"), request.encode(), str(status).encode(), body).hex()


class Challenges:
    """Makes challenges and takes each back once; remembers only those that came back."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._secret = os.urandom(32)
        self._spent: OrderedDict[bytes, float] = OrderedDict()

    def make(self) -> str:
        """Return a fresh challenge."""
        made = _MADE.pack(self._clock(), os.urandom(16))
        return (made + code(self._secret, made)).hex()

    def spend(self, text: str) -> bool:
        """Take a challenge back; False if it is not ours, too old, or came back before."""
        try:
            challenge = bytes.fromhex(text)
        except ValueError:
            return False
        made, proof = challenge[: _MADE.size], challenge[_MADE.size :]
        if not hmac.compare_digest(proof, code(self._secret, made)):
            return False
        now = self._clock()
        while self._spent and next(iter(self._spent.values())) < now - LIFE:
            self._spent.popitem(last=False)
        if _MADE.unpack(made)[0] < now - LIFE or made in self._spent:
            return False
        self._spent[made] = now
        return True
