"""What is done from time to time for rooms of decode that wait, or whose pages are not safe."""

from __future__ import annotations

import time

from pdcore.decode.receiver import KVReceiver
from pdcore.decode.receivers import Receivers
from pdcore.managers.chores import Chores
from pdcore.model import KVPoll

__all__ = ["Lookout"]


class Lookout:
    """Belongs to the control thread; ``patience`` and ``interval`` are in seconds."""

    def __init__(self, receivers: Receivers, chores: Chores, patience: float, interval: float) -> None:
        self._receivers, self._chores = receivers, chores
        self._patience, self._interval = patience, interval
        self._remind_at = 0.0

    def look(self) -> None:
        """Look after rooms that have been open for longer than the patience; once per interval, remind."""
        now = time.monotonic()
        lately = now - self._patience
        rooms = [r for r in self._receivers.open() if r.record.opened_at < lately and not r.poll().terminal]
        self._chores.each("looking after a room", rooms, KVReceiver.look_out)
        if now >= self._remind_at:
            self._remind_at = now + self._interval
            self._remind()

    def _remind(self) -> None:
        """Ask again after failed rooms whose pages are not released."""
        failed = [r for r in self._receivers.all() if r.poll() is KVPoll.FAILED]
        self._chores.each("asking after a failed room", failed, KVReceiver.remind)
