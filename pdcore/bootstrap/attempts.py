"""How often a bootstrap service could not be reached, and what the system said each time."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections import Counter

import aiohttp

from pdcore.model import Clock

__all__ = ["Attempts"]

MAX_ADDRESSES = 1024
"""The addresses of which failures are remembered; the one that failed first is forgotten."""
NO_ANSWER = "no answer within the deadline"


class Attempts:
    """Failed attempts by address, since the last that succeeded. The lock guards ``_failed``."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failed: dict[str, tuple[float, Counter[str]]] = {}

    def failed(self, address: str, error: BaseException) -> None:
        """Note one that failed."""
        with self._lock:
            if address not in self._failed and len(self._failed) >= MAX_ADDRESSES:
                del self._failed[next(iter(self._failed))]
            _, reasons = self._failed.setdefault(address, (self._clock(), Counter()))
            reasons[reason_of(error)] += 1

    def succeeded(self, address: str) -> None:
        """Forget those before."""
        if self._failed:
            with self._lock:
                self._failed.pop(address, None)

    def count(self, address: str) -> int:
        """Return how many failed."""
        with self._lock:
            _, reasons = self._failed.get(address, (0.0, Counter()))
            return sum(reasons.values())

    def told(self, address: str) -> str:
        """Return how often and why: ``asked 48 times in 10 s: Connection refused``; "" if none failed."""
        with self._lock:
            if address not in self._failed:
                return ""
            since, reasons = self._failed[address]
            seconds, ranked = self._clock() - since, reasons.most_common()
        count = sum(n for _, n in ranked)
        why = "; ".join(reason if len(ranked) == 1 else f"{reason} ({n})" for reason, n in ranked)
        return f"asked {count} time{'s' if count != 1 else ''} in {seconds:.1f} s: {why}"


def reason_of(error: BaseException) -> str:
    """Return what the system says, without the library's words around it."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, asyncio.TimeoutError):
        return NO_ANSWER
    if isinstance(cause, socket.gaierror):
        return cause.strerror or str(cause)
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno)
    return str(cause) or type(cause).__name__
