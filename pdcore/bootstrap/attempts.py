"""How often a bootstrap service could not be reached, and what the system said each time."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections import Counter

import aiohttp
import attrs

from pdcore.model import Clock

__all__ = ["A_WHILE", "Attempts", "reason_of"]

MAX_ADDRESSES = 1024
"""The addresses of which failures are remembered; the one that failed first is forgotten."""
A_WHILE = 2.0
NO_ANSWER = "no answer within the deadline"


@attrs.define
class _Row:
    since: float
    last: float
    reasons: Counter[str] = attrs.field(factory=Counter)


class Attempts:
    """Failed attempts by address: those in a row, since the last that succeeded or ``pause`` seconds without.

    The lock guards ``_failed``.
    """

    def __init__(self, clock: Clock = time.monotonic, pause: float = A_WHILE) -> None:
        self._clock, self._pause = clock, pause
        self._lock = threading.Lock()
        self._failed: dict[str, _Row] = {}

    def failed(self, address: str, error: BaseException, took: float) -> None:
        """Note one that failed now, after ``took`` seconds."""
        now = self._clock()
        with self._lock:
            row = self._failed.get(address)
            if row is None or now - took > row.last + self._pause:
                if row is None and len(self._failed) >= MAX_ADDRESSES:
                    del self._failed[next(iter(self._failed))]
                row = self._failed[address] = _Row(now - took, now)
            row.last = now
            row.reasons[reason_of(error)] += 1

    def succeeded(self, address: str) -> None:
        """Forget those before."""
        if self._failed:
            with self._lock:
                self._failed.pop(address, None)

    def count(self, address: str) -> int:
        """Return how many failed."""
        with self._lock:
            return sum(self._failed[address].reasons.values()) if address in self._failed else 0

    def told(self, address: str) -> str:
        """Return how often and why: ``asked 48 times in 10 s: Connection refused``; "" if none failed."""
        with self._lock:
            row = self._failed.get(address)
            if row is None:
                return ""
            seconds, ranked = self._clock() - row.since, row.reasons.most_common()
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
