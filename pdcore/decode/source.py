"""One prefill rank as decode sees it: asked, paired, lost."""

from __future__ import annotations

import threading
from enum import Enum
from typing import Protocol

from pdcore.bootstrap.record import RankRecord
from pdcore.errors import AuthenticationError, FailureCode, KVTransferError
from pdcore.model import Incarnation, PeerIdentity, Role
from pdcore.pairing.description import PeerDescription
from pdcore.wire import Route

__all__ = [
    "PrefillSource",
    "SourceState",
    "Subscriber",
    "gone",
    "indescribable",
    "replaced",
    "turned_away",
]


class SourceState(Enum):
    """How far the pairing with a prefill rank has come."""

    ASKED = "asked"
    PAIRED = "paired"
    LOST = "lost"


class Subscriber(Protocol):
    """Who waits for a pairing."""

    def paired(self) -> None:
        """The pairing is there."""

    def unpaired(self, failure: KVTransferError) -> bool:
        """The pairing failed."""


class PrefillSource:
    """The pairing with one prefill rank, reached by ``route``.

    The lock guards ``_state``, ``_waiting`` and ``_failure``.
    """

    def __init__(self, record: RankRecord, route: Route) -> None:
        self.identity = PeerIdentity(Role.PREFILL, record.incarnation, record.address)
        self.rank = record.topology.unique_rank
        self.route = route
        self.description: PeerDescription | None = None
        self._lock = threading.Lock()
        self._state = SourceState.ASKED
        self._failure: KVTransferError | None = None
        self._waiting: list[Subscriber] = []

    def __str__(self) -> str:
        return str(self.identity)

    @property
    def ready(self) -> bool:
        """Whether requests may be posted."""
        return self._state is SourceState.PAIRED

    @property
    def failure(self) -> KVTransferError | None:
        """Why it is lost, or None."""
        return self._failure

    @property
    def lost(self) -> bool:
        """Whether it is of no use any more; the next request makes a new one."""
        return self._state is SourceState.LOST

    @property
    def refused(self) -> bool:
        """Whether it is lost because the two sides, or their engines, do not fit: prefill is there."""
        return self._failure is not None and self._failure.code in (
            FailureCode.INCOMPATIBLE,
            FailureCode.ENGINE,
        )

    def subscribe(self, waiting: Subscriber, *, first: bool = False) -> None:
        """Tell somebody when the pairing is there or has failed; at once if that is known.

        ``first``: before all who wait already.
        """
        with self._lock:
            failure, asked = self._failure, self._state is SourceState.ASKED
            if asked:
                self._waiting.insert(0 if first else len(self._waiting), waiting)
        if failure is not None:
            waiting.unpaired(failure)
        elif not asked:
            waiting.paired()

    def pair(self, description: PeerDescription) -> bool:
        """Note that prefill accepted and tell who waits; False if it was lost meanwhile."""
        with self._lock:
            if self._state is not SourceState.ASKED:
                return False
            self._state, self.description = SourceState.PAIRED, description
            told, self._waiting = self._waiting, []
        for waiting in told:
            waiting.paired()
        return True

    def lose(self, failure: KVTransferError) -> bool:
        """Note that it is lost and fail who waits for the pairing; False if it was lost before."""
        with self._lock:
            if self._state is SourceState.LOST:
                return False
            self._failure, self._state = failure, SourceState.LOST
            told, self._waiting = self._waiting, []
        for waiting in told:
            waiting.unpaired(failure)
        return True


def gone(source: PrefillSource, why: str) -> KVTransferError:
    """Return the failure of a prefill rank that left, or that is not heard of any more."""
    to_do = "send the request to another prefill worker"
    return KVTransferError(FailureCode.PEER_LOST, f"lost {source}", why, to_do)


def turned_away(source: PrefillSource, error: AuthenticationError) -> KVTransferError:
    """Return the failure of a prefill rank that will have nothing to do with this side."""
    happened = f"cannot pair with {source}: {error.happened}"
    return KVTransferError(FailureCode.UNAUTHENTICATED, happened, error.there_is, error.to_do)


def replaced(source: PrefillSource, by: Incarnation) -> KVTransferError:
    """Return the failure of a prefill rank at whose address another process runs now."""
    return KVTransferError(
        FailureCode.PEER_LOST,
        f"lost {source}",
        f"incarnation {by[:8]} runs there now",
        "send the request again; the next one pairs with it",
    )


def indescribable(source: PrefillSource, size: int, limit: int) -> KVTransferError:
    """Return the failure of a prefill rank that cannot be told what this side is."""
    return KVTransferError(
        FailureCode.INCOMPATIBLE,
        f"cannot pair with {source}: what describes this side does not fit a control message",
        f"{size} bytes, control.max_message_bytes is {limit}",
        "raise control.max_message_bytes on both sides",
    )
