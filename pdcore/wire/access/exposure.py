"""Says once per process that its control plane has no key."""

from __future__ import annotations

import ipaddress
import logging
import threading

from pdcore.config.auth_key import AuthKey

__all__ = ["say_if_open"]

_log = logging.getLogger("pdcore.wire")
_lock = threading.Lock()  # guards _said
_said: set[int] = set()


def say_if_open(key: AuthKey | None, host: str) -> None:
    """Log that there is no key: a warning if other machines reach ``host``, else only information."""
    if key is not None:
        return
    level = logging.INFO if _only_here(host) else logging.WARNING
    with _lock:
        if level in _said:
            return
        _said.add(level)
    _log.log(
        level,
        "the control plane is open to whoever reaches it (%s): set PDCORE_AUTH_KEY to the same secret on all "
        "sides, or keep it on a trusted network",
        host,
    )


def _only_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
