"""The key that all who may speak on the control plane share: kept, used, and never shown."""

from __future__ import annotations

import hashlib
import hmac

from pdcore.errors import ConfigError, ConfigProblem

__all__ = ["AuthKey", "auth_key", "code"]

MIN_BYTES = 16


class AuthKey:
    """A shared secret of at least 16 bytes (UTF-8). Neither ``repr``, ``str`` nor an error tells it."""

    __slots__ = ("_secret",)

    def __init__(self, text: str) -> None:
        try:
            self._secret = text.encode("utf-8", "surrogateescape")  # as the environment's bytes come
        except UnicodeEncodeError as error:
            reason = "must be text, and holds half of a surrogate pair"
            raise ConfigError([ConfigProblem("auth_key", "code", reason)]) from error
        if len(self._secret) < MIN_BYTES:
            size = len(self._secret)
            reason = f"must have at least {MIN_BYTES} bytes, has {size}; `openssl rand -hex 32` makes one"
            raise ConfigError([ConfigProblem("auth_key", "code", reason)])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AuthKey) and hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self._secret)

    def __repr__(self) -> str:
        return "AuthKey(hidden)"

    def derive(self, purpose: str, *parts: bytes) -> bytes:
        """Return a key (32 bytes) for one purpose and the values that it is bound to."""
        return code(self._secret, purpose.encode(), *parts)


def auth_key(value: AuthKey | str | None) -> AuthKey | None:
    """Return the key of a configured value; None means that there is none.

    Raises:
        ConfigError: it is too short, or no text.
    """
    if value is None or isinstance(value, AuthKey):
        return value
    if not issubclass(type(value), str):  # whatever the annotation says
        problem = ConfigProblem("auth_key", "code", f"must be text, is of type {type(value).__name__}")
        raise ConfigError([problem])
    return AuthKey(value)


def code(key: bytes, *parts: bytes | memoryview) -> bytes:
    """Return the HMAC-SHA256 (32 bytes) of some parts; where one ends counts too."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        mac.update(len(part).to_bytes(8, "big"))
        mac.update(part)
    return mac.digest()
