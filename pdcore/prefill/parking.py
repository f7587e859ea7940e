"""Requests of decode that came before prefill opened their room: kept until then, or until they expire."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import RoomId
from pdcore.prefill.link import Destination

__all__ = ["Parking"]

CAPACITY = 65_536


class Parking:
    """At most ``CAPACITY`` requests by room. The lock guards ``_parked``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parked: OrderedDict[RoomId, Destination] = OrderedDict()

    def put(self, destination: Destination) -> tuple[Destination, KVTransferError] | None:
        """Park a request; return one that had to give way, with the reason to tell it."""
        room = destination.wanted.room
        with self._lock:
            old = self._parked.pop(room, None)
            self._parked[room] = destination
            if old is not None:
                return old, KVTransferError(
                    FailureCode.ABORTED,
                    f"room {room} was asked for again before prefill opened it",
                    f"{old.link.identity} asked first, then {destination.link.identity}",
                    "use one room id per request",
                )
            if len(self._parked) <= CAPACITY:
                return None
            return self._parked.popitem(last=False)[1], KVTransferError(
                FailureCode.ABORTED,
                "prefill holds too many requests that it opened no room for",
                f"{CAPACITY} requests",
                "send every request to both sides",
            )

    def take(self, room: RoomId) -> Destination | None:
        """Take the request that waits for a room."""
        with self._lock:
            return self._parked.pop(room, None)

    def drop(self, gone: Callable[[Destination], bool]) -> None:
        """Drop the requests that a test picks."""
        if not self._parked:
            return
        with self._lock:
            for room in [room for room, d in self._parked.items() if gone(d)]:
                del self._parked[room]
