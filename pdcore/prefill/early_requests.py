"""Requests of decode that came before prefill opened their room: kept until then, or until they expire."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Generation, RoomId
from pdcore.prefill.link import Destination
from pdcore.prefill.lives import Life
from pdcore.wire import Route

__all__ = ["EarlyRequests"]

CAPACITY = 65_536


Evicted = tuple[Destination, KVTransferError]
"""A request that had to give way, and what to tell it."""


class EarlyRequests:
    """At most ``CAPACITY`` rooms, with one request of each decode rank.

    A request that is taken is in hand until its room has it, or has refused it: what decode says of it
    meanwhile is kept. The lock guards ``_parked`` and ``_in_hand``.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parked: OrderedDict[RoomId, tuple[Destination, ...]] = OrderedDict()
        self._in_hand: dict[RoomId, dict[Destination, KVTransferError | None]] = {}

    def __len__(self) -> int:
        with self._lock:
            return sum(map(len, self._parked.values()))

    def put(self, destination: Destination) -> list[Evicted]:
        """Park a request; return those that had to give way. One that is parked already stays."""
        wanted, room = destination.wanted, destination.wanted.room
        with self._lock:
            before = self._parked.get(room, ())
            if any(d.is_for(destination.link.route, room, wanted.generation) for d in before):
                return []
            self._parked.pop(room, None)
            again = [d for d in before if d.link.rank == destination.link.rank]
            self._parked[room] = (*(d for d in before if d not in again), destination)
            oldest = self._parked.popitem(last=False)[1] if len(self._parked) > CAPACITY else ()
        return [(d, _asked_again(d, destination)) for d in again] + [(d, _too_many()) for d in oldest]

    def take(self, room: RoomId) -> tuple[Destination, ...]:
        """Take the requests that wait for a room in hand, until it is ``handed_over`` what it gets."""
        with self._lock:
            taken = self._parked.pop(room, ())
            if taken:
                self._in_hand[room] = dict.fromkeys(taken)
            return taken

    def handed_over(self, life: Life) -> list[KVTransferError]:
        """Have nothing for a room in hand any more; return why decode gave up, of what the room got."""
        with self._lock:
            in_hand = self._in_hand.pop(life.record.room, {})
        got = [d for d in in_hand if life.is_promised_to(d.link.route, d.wanted.generation)]
        return [why for d in got if (why := in_hand[d]) is not None]

    def give_up(self, route: Route, room: RoomId, generation: Generation, why: KVTransferError) -> bool:
        """Note that decode gives up a request that is in hand; False if it is not."""
        with self._lock:
            in_hand = self._in_hand.get(room, {})
            meant = [d for d in in_hand if d.is_for(route, room, generation)]
            in_hand.update(dict.fromkeys(meant, why))
            return bool(meant)

    def holds(self, route: Route, room: RoomId, generation: Generation) -> bool:
        """Whether a request is parked, or in hand."""
        with self._lock:
            held = (*self._parked.get(room, ()), *self._in_hand.get(room, {}))
        return any(d.is_for(route, room, generation) for d in held)

    def drop_one(self, route: Route, room: RoomId, generation: Generation) -> bool:
        """Drop a request that is over: the next life of its room would take it. False if none is parked."""
        if room not in self._parked:
            return False
        with self._lock:
            parked = self._parked.get(room, ())
            kept = tuple(d for d in parked if not d.is_for(route, room, generation))
            if kept:
                self._parked[room] = kept
            else:
                self._parked.pop(room, None)
            return len(kept) < len(parked)

    def drop(self, gone: Callable[[Destination], bool]) -> list[Destination]:
        """Drop the requests that a test picks, and return them."""
        dropped: list[Destination] = []
        if not self._parked:
            return dropped
        with self._lock:
            for room, parked in list(self._parked.items()):
                kept = tuple(d for d in parked if not gone(d))
                dropped += [d for d in parked if d not in kept]
                if not kept:
                    del self._parked[room]
                elif len(kept) < len(parked):
                    self._parked[room] = kept
        return dropped


def _asked_again(first: Destination, then: Destination) -> KVTransferError:
    return KVTransferError(
        FailureCode.ABORTED,
        f"room {first.wanted.room} was asked for again before prefill opened it",
        f"{first.link.identity} asked first, then {then.link.identity}",
        "use one room id per request",
    )


def _too_many() -> KVTransferError:
    return KVTransferError(
        FailureCode.ABORTED,
        "prefill holds too many requests that it opened no room for",
        f"{CAPACITY} requests",
        "send every request to both sides",
    )
