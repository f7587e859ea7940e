"""Slots that were filled for ranks that receive, and that these have yet to take."""

from __future__ import annotations

from pdcore.protocol.actions import FreeSlot
from pdcore.protocol.peer import RemoteRank
from pdcore.protocol.room import Turn
from pdcore.wire import Packed, Unpacked

__all__ = ["HandedSlots"]


class HandedSlots:
    """Says of a slot again that it is filled, once per ``interval`` seconds, until it is given back: a
    connection that is cut loses what was said on it, and with it the slot would be lost."""

    def __init__(self, turn: Turn, interval: float) -> None:
        self._turn, self._interval = turn, interval
        self._handed: dict[RemoteRank, dict[int, tuple[Packed, float]]] = {}

    def __len__(self) -> int:
        """How many there are."""
        return sum(map(len, self._handed.values()))

    def hand(self, peer: RemoteRank, packed: Packed) -> None:
        """Tell a rank that a slot is filled."""
        self._handed.setdefault(peer, {})[packed.slot] = packed, self._turn.now
        self._turn.post(peer.route, packed)

    def taken(self, peer: RemoteRank, what: Unpacked) -> None:
        """A rank gives a slot back; said again, or of an earlier use, it means nothing."""
        slots = self._handed.get(peer, {})
        handed = slots.get(what.slot)
        if handed is not None and handed[0].number == what.number:
            del slots[what.slot]
            if not slots:
                del self._handed[peer]
            self._turn.do(FreeSlot(peer.route, peer.identity, what.slot, what.number))

    def lost(self, peer: RemoteRank) -> None:
        """A rank is lost, and its ring with it."""
        self._handed.pop(peer, None)

    def tick(self) -> None:
        """Say again what was not answered."""
        now = self._turn.now
        for peer, slots in self._handed.items():
            for slot, (packed, said_at) in slots.items():
                if now - said_at >= self._interval:
                    slots[slot] = packed, now
                    self._turn.post(peer.route, packed)
