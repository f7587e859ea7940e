"""Warnings about peers: one per sender and interval, however many messages they are about."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict

import attrs

from pdcore.model import Clock

__all__ = ["COMPLAINT_SECONDS", "Complaints"]

COMPLAINT_SECONDS = 10.0
"""Between two log lines about the same misbehaviour of the same peer."""

MOST_SUBJECTS = 1_024
"""Those beyond are complained about together."""

EVERYBODY_ELSE = "others"


@attrs.define
class _Said:
    at: float
    suppressed: int = 0


class Complaints:
    """Logs the first complaint about a subject, then one per ``interval`` seconds.

    Each says how many were not logged since the one before. The lock guards ``_said``.
    """

    def __init__(self, log: logging.Logger, interval: float, clock: Clock = time.monotonic) -> None:
        self._log, self._interval, self._clock = log, interval, clock
        self._lock = threading.Lock()
        self._said: OrderedDict[str, _Said] = OrderedDict()

    def about(self, subject: str, what: str, error: BaseException | None = None) -> None:
        """Complain now, or count it for later; with the traceback of ``error``."""
        with self._lock:
            suppressed = self._count(subject)
        if suppressed is not None:
            more = f"\n  {suppressed} more like it were not logged" if suppressed else ""
            self._log.warning("%s%s", what, more, exc_info=error)

    def _count(self, subject: str) -> int | None:
        """Return how many were suppressed since the last complaint, or None if this one is too."""
        now = self._clock()
        self._forget_old(now)
        if subject not in self._said and len(self._said) >= MOST_SUBJECTS:
            subject = EVERYBODY_ELSE
        said = self._said.pop(subject, None)
        if said is not None and now - said.at < self._interval:
            said.suppressed += 1
            self._said[subject] = said
            return None
        self._said[subject] = _Said(now)
        return said.suppressed if said is not None else 0

    def _forget_old(self, now: float) -> None:
        """Let go of who has long been silent: the one that spoke longest ago comes first."""
        while self._said:
            subject, said = next(iter(self._said.items()))
            if now - said.at < 2 * self._interval:
                return
            del self._said[subject]
