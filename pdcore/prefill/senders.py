"""The rooms that prefill knows: those open, and those cleared that are not drained yet."""

from __future__ import annotations

import threading

from pdcore.model import RoomId
from pdcore.prefill.link import PeerLink
from pdcore.prefill.sender import KVSender

__all__ = ["Senders"]


class Senders:
    """The lock guards ``_open`` and ``_draining``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[RoomId, KVSender] = {}
        self._draining: list[KVSender] = []

    def __len__(self) -> int:
        return len(self._open) + len(self._draining)

    def add(self, sender: KVSender) -> None:
        """Take a room that was opened."""
        with self._lock:
            self._open[sender.room] = sender

    def get(self, room: RoomId) -> KVSender | None:
        """Return the room that has an id now, which may have ended."""
        return self._open.get(room)

    def open(self) -> list[KVSender]:
        """Return the rooms that are not cleared."""
        with self._lock:
            return list(self._open.values())

    def all(self) -> list[KVSender]:
        """Return the rooms that are not cleared or not drained."""
        with self._lock:
            return [*self._open.values(), *self._draining]

    def of(self, room: RoomId) -> list[KVSender]:
        """Return all lives of an id: those cleared that are not drained, and the present one."""
        with self._lock:
            return [s for s in (*self._draining, self._open.get(room)) if s is not None and s.room == room]

    def using(self, link: PeerLink) -> list[KVSender]:
        """Return the rooms that are promised to a peer."""
        return [sender for sender in self.open() if sender.uses(link)]

    def clear(self, sender: KVSender) -> bool:
        """Free the id of a room; one that is not drained stays known until it is. False if it was freed."""
        with self._lock:
            if self._open.get(sender.room) is not sender:
                return False
            del self._open[sender.room]
            if not sender.drained:
                self._draining.append(sender)
            return True

    def sweep(self) -> None:
        """Forget the cleared rooms that have drained."""
        if self._draining:
            with self._lock:
                self._draining = [sender for sender in self._draining if not sender.drained]
