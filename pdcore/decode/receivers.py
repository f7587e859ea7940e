"""The rooms that decode knows: those open, and those cleared whose pages are not safe yet."""

from __future__ import annotations

import threading

from pdcore.decode.receiver import KVReceiver
from pdcore.decode.source import PrefillSource
from pdcore.model import Generation, RoomId

__all__ = ["Receivers"]


class Receivers:
    """The lock guards ``_open`` and ``_draining``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[RoomId, KVReceiver] = {}
        self._draining: dict[Generation, KVReceiver] = {}

    def __len__(self) -> int:
        return len(self._open) + len(self._draining)

    def add(self, receiver: KVReceiver) -> None:
        """Take a room that was opened."""
        with self._lock:
            self._open[receiver.room] = receiver

    def get(self, room: RoomId) -> KVReceiver | None:
        """Return the room that has an id now, which may have ended."""
        return self._open.get(room)

    def open(self) -> list[KVReceiver]:
        """Return the rooms that are not cleared."""
        with self._lock:
            return list(self._open.values())

    def all(self) -> list[KVReceiver]:
        """Return the rooms that are not cleared or not safe."""
        with self._lock:
            return [*self._open.values(), *self._draining.values()]

    def using(self, source: PrefillSource) -> list[KVReceiver]:
        """Return the rooms that wait for a prefill process."""
        return [receiver for receiver in self.all() if receiver.uses(source)]

    def held_by(self, source: PrefillSource) -> bool:
        """Whether pages of a room are unsafe because a prefill process may write to them."""
        return any(receiver.may_be_written_by(source) for receiver in self.all())

    def meant(self, source: PrefillSource, room: RoomId, generation: Generation) -> KVReceiver | None:
        """Return the room that a message of a prefill process is about."""
        for candidate in (self._open.get(room), self._draining.get(generation)):
            if candidate is not None and candidate.is_for(source, room, generation):
                return candidate
        return None

    def clear(self, receiver: KVReceiver) -> None:
        """Free the id of a room; one that is not safe stays known until it is."""
        with self._lock:
            if self._open.get(receiver.room) is receiver:
                if not receiver.release_safe():
                    self._draining[receiver.record.generation] = receiver
                del self._open[receiver.room]

    def sweep(self) -> None:
        """Forget the cleared rooms that are safe."""
        if self._draining:
            with self._lock:
                self._draining = {g: r for g, r in self._draining.items() if not r.release_safe()}
