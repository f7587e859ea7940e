"""The prefill ranks that a decode rank needs for a request: found together, ready when all are paired."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from pdcore.bootstrap import ReplicaQuery
from pdcore.decode.source import PrefillSource, Subscriber
from pdcore.errors import (
    AuthenticationError,
    FailureCode,
    IncompatiblePeerError,
    KVTransferError,
    Misfit,
    PDCoreError,
)
from pdcore.model import Deadline
from pdcore.pairing.description import PeerDescription

__all__ = ["PrefillGroup", "as_failure"]

_log = logging.getLogger("pdcore.decode")


class PrefillGroup:
    """Those ranks of a prefill replica that hear from this decode rank.

    ``senders`` send to it; the other ``members`` are told for each room that nothing is asked of them.
    The lock guards ``members``, ``_ready``, ``_failure``, ``_waiting`` and ``_when_found``.
    """

    def __init__(self, bootstrap: str, query: ReplicaQuery, deadline: Deadline) -> None:
        self.deadline = deadline
        self.bootstrap = bootstrap
        self.query = query
        self.members: tuple[PrefillSource, ...] = ()
        self.senders: tuple[PrefillSource, ...] = ()
        self._check: Callable[[Sequence[PeerDescription]], tuple[Misfit, ...]] = _nothing
        self._lock = threading.Lock()
        self._ready = False
        self._failure: KVTransferError | None = None
        self._waiting: list[Subscriber] = []
        self._when_found: list[Callable[[], None]] = []

    def __str__(self) -> str:
        return f"{self.query} of {self.bootstrap}"

    @property
    def ready(self) -> bool:
        """Whether requests may be posted to all members."""
        return self._ready and not self.lost

    @property
    def lost(self) -> bool:
        """Whether it is of no use any more; the next request finds a new one."""
        return self._failure is not None or any(member.lost for member in self.members)

    @property
    def overdue(self) -> bool:
        """Whether not all were paired by the deadline."""
        return not self._ready and self._failure is None and self.deadline.expired

    def subscribe(self, room: Subscriber) -> None:
        """Tell a room when all are paired or one failed; at once if that is known."""
        with self._lock:
            failures = [member.failure for member in self.members if member.failure is not None]
            failure, ready = next(iter(failures), self._failure), self._ready
            if not ready and failure is None:
                self._waiting.append(room)
        if failure is not None:
            room.unpaired(failure)
        elif ready:
            room.paired()

    def found(
        self,
        senders: Sequence[PrefillSource],
        dummies: Sequence[PrefillSource],
        check: Callable[[Sequence[PeerDescription]], tuple[Misfit, ...]],
    ) -> None:
        """Take the members. Once the senders are paired, ``check`` says what is amiss with them together."""
        self._check = check
        with self._lock:
            self.senders, self.members = tuple(senders), (*senders, *dummies)
            actions, self._when_found = self._when_found, []
        for action in actions:
            action()
        for member in self.members:
            member.subscribe(self)

    def whenever_found(self, action: Callable[[], None]) -> None:
        """Do something once the members are known: now, later, or never if they cannot be found."""
        with self._lock:
            if not self.members:
                if self._failure is None:
                    self._when_found.append(action)
                return
        action()

    def paired(self) -> None:
        """A member is paired."""
        if self._ready or not all(member.ready for member in self.members):
            return
        misfits = self._check([s.description for s in self.senders if s.description is not None])
        if misfits:
            self.unpaired(as_failure(FailureCode.INCOMPATIBLE, IncompatiblePeerError(str(self), misfits)))
            return
        with self._lock:
            self._ready = self._failure is None
            told, self._waiting = (self._waiting, []) if self._ready else ([], self._waiting)
        for room in told:
            try:
                room.paired()
            except Exception:  # that room has failed, and the others wait for this as well
                _log.exception("a room could not ask %s for its pages", self)

    def unpaired(self, failure: KVTransferError) -> bool:
        """It cannot become ready: fail who waits; False if that was known."""
        with self._lock:
            if self._failure is not None or self._ready:
                return False
            self._failure = failure
            told, self._waiting = self._waiting, []
            self._when_found.clear()
        for room in told:
            room.unpaired(failure)
        return True


def as_failure(code: FailureCode, error: BaseException) -> KVTransferError:
    """Return an error of the pairing as a room's failure."""
    if isinstance(error, KVTransferError):
        return error
    if isinstance(error, AuthenticationError):
        code = FailureCode.UNAUTHENTICATED
    if isinstance(error, PDCoreError):
        return KVTransferError(code, error.happened, error.there_is, error.to_do)
    return KVTransferError(code, "pairing with prefill failed", repr(error), "look at both sides' logs")


def _nothing(_: Sequence[PeerDescription]) -> tuple[Misfit, ...]:
    return ()
