"""One prefill rank as decode sees it: found, asked, paired, lost."""

from __future__ import annotations

import threading
from enum import Enum
from typing import Protocol

from pdcore.backend import PeerIdentity
from pdcore.errors import KVTransferError
from pdcore.model import Deadline
from pdcore.wire import PeerDescription, Route

__all__ = ["PrefillSource", "SourceState", "Subscriber"]


class SourceState(Enum):
    """How far the pairing with a prefill rank has come."""

    FINDING = "finding"
    ASKED = "asked"
    PAIRED = "paired"
    LOST = "lost"


class Subscriber(Protocol):
    """A room that waits for a pairing."""

    def paired(self) -> None:
        """The pairing is there."""

    def fail(self, failure: KVTransferError) -> bool:
        """The pairing failed."""


class PrefillSource:
    """The pairing with the rank of ``bootstrap`` and ``dp_rank`` that this decode rank needs.

    The lock guards ``_state``, ``_waiting`` and ``_failure``.
    """

    def __init__(self, bootstrap: str, dp_rank: int, deadline: Deadline) -> None:
        self.bootstrap = bootstrap
        self.dp_rank = dp_rank
        self.deadline = deadline
        self.route: Route | None = None
        self.description: PeerDescription | None = None
        self._lock = threading.Lock()
        self._state = SourceState.FINDING
        self._failure: KVTransferError | None = None
        self._waiting: list[Subscriber] = []

    def __str__(self) -> str:
        if self.description is None:
            return f"prefill DP rank {self.dp_rank} of {self.bootstrap}"
        return str(self.identity)

    @property
    def identity(self) -> PeerIdentity:
        """Who it is, once paired."""
        assert self.description is not None
        d = self.description
        return PeerIdentity(d.role, d.incarnation, d.address)

    @property
    def ready(self) -> bool:
        """Whether requests may be posted."""
        return self._state is SourceState.PAIRED

    @property
    def overdue(self) -> bool:
        """Whether the pairing was not made by its deadline."""
        return self._state in (SourceState.FINDING, SourceState.ASKED) and self.deadline.expired

    @property
    def lost(self) -> bool:
        """Whether it is of no use any more; the next request makes a new one."""
        return self._state is SourceState.LOST

    def subscribe(self, room: Subscriber) -> None:
        """Tell a room when the pairing is there or has failed; at once if that is known."""
        with self._lock:
            state, failure = self._state, self._failure
            if state in (SourceState.FINDING, SourceState.ASKED):
                self._waiting.append(room)
                return
        if failure is not None:
            room.fail(failure)
        else:
            room.paired()

    def asked(self, route: Route) -> bool:
        """Note that a PairRequest goes out on a route; False if the source was lost meanwhile."""
        with self._lock:
            if self._state is not SourceState.FINDING:
                return False
            self._state, self.route = SourceState.ASKED, route
            return True

    def pair(self, description: PeerDescription) -> bool:
        """Note that prefill accepted and tell who waits; False if nobody was asked."""
        with self._lock:
            if self._state is not SourceState.ASKED:
                return False
            self._state, self.description = SourceState.PAIRED, description
            waiting, self._waiting = self._waiting, []
        for room in waiting:
            room.paired()
        return True

    def lose(self, failure: KVTransferError) -> bool:
        """Note that it is lost and fail who waits for the pairing; False if it was lost before."""
        with self._lock:
            if self._state is SourceState.LOST:
                return False
            self._state, self._failure = SourceState.LOST, failure
            waiting, self._waiting = self._waiting, []
        for room in waiting:
            room.fail(failure)
        return True
