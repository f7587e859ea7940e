"""Who is alive: pure bookkeeping of heartbeats and connections, driven by a manager's control thread.

A heartbeat comes from the peer's control thread, and so needs its interpreter: one that is busy in a graph
capture or a long collection sends none, and lives. What needs no interpreter is the connection: the kernel
ends those of a process that is dead, and of a machine that is gone; libzmq's own thread answers for a process
that runs, though one that gets no CPU or no memory may take long. So a peer is lost only when it is not heard
*and* its connection is gone, or its process is seen to be stopped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

import attrs

from pdcore.wire.monitor import Connection, ConnectionEvent

__all__ = ["Heartbeats"]

Key = TypeVar("Key", bound=Hashable)


@attrs.define
class Heartbeats(Generic[Key]):
    """Peers by key with the monotonic time (seconds) at which each was last heard.

    All peers are checked at once and none is waited for, so a silent one delays nobody. ``patience``: seconds
    for a peer that was dialled and has never been reached.
    """

    interval: float
    max_failures: int
    patience: float = float("inf")
    _heard: dict[Key, float] = attrs.field(factory=dict, init=False)
    _missed: dict[Key, int] = attrs.field(factory=dict, init=False)
    _cut: set[Key] = attrs.field(factory=set, init=False)
    _unmet: dict[Key, float] = attrs.field(factory=dict, init=False)
    _attempts: Counter[Key] = attrs.field(factory=Counter, init=False)
    _next_beat: float = attrs.field(default=0.0, init=False)
    _looked_at: float = attrs.field(default=float("inf"), init=False)

    @property
    def limit(self) -> float:
        """Seconds of silence after which a peer without a connection is lost."""
        return self.interval * self.max_failures

    def track(self, key: Key, now: float, *, connected: bool) -> None:
        """Start expecting heartbeats of a peer, which is connected or was just dialled."""
        self._heard[key] = now
        self._cut.discard(key)
        self._unmet.pop(key, None)
        if not connected:
            self._cut.add(key)
            self._unmet[key] = now
        self._attempts.pop(key, None)

    def forget(self, key: Key) -> None:
        """Stop expecting them."""
        self._heard.pop(key, None)
        self._missed.pop(key, None)
        self._cut.discard(key)
        self._unmet.pop(key, None)
        self._attempts.pop(key, None)

    def heard(self, key: Key, now: float) -> bool:
        """Note a heartbeat; return whether the peer is tracked."""
        if key not in self._heard:
            return False
        self._heard[key] = now
        self.connected(key)
        return True

    def connected(self, key: Key) -> None:
        """Note that there is a connection to the peer's process."""
        self._cut.discard(key)
        self._unmet.pop(key, None)

    def disconnected(self, key: Key) -> None:
        """Note that it ended, or that another attempt at one did."""
        if key in self._heard:
            self._cut.add(key)
            self._attempts[key] += key in self._unmet

    def note(self, key: Key | None, event: ConnectionEvent) -> None:
        """Take what libzmq says of a connection to a peer that was dialled (None: of one that dialled us)."""
        if key is None:
            if event.what is Connection.DISCONNECTED:
                # Nobody says whose it was: a heartbeat that cannot be sent will tell, so that it is due now.
                self._next_beat = 0.0
        elif event.what is Connection.HANDSHAKEN:
            self.connected(key)
        elif event.what in (Connection.DISCONNECTED, Connection.RETRIED):
            self.disconnected(key)

    def without_connection(self) -> list[Key]:
        """Return the peers that are not connected now."""
        return list(self._cut)

    def missed(self, now: float) -> list[tuple[Key, int]]:
        """Return who missed another heartbeat since this was asked last, and how many in a row by now.

        One that is half an interval late is missed.
        """
        counts = {key: int((now - last) / self.interval - 0.5) for key, last in self._heard.items()}
        more = [(key, count) for key, count in counts.items() if count > self._missed.get(key, 0)]
        self._missed = counts
        return more

    def silent(self, now: float) -> list[tuple[Key, str]]:
        """Return the peers that are lost, and why: no connection, and not heard for ``limit`` seconds.

        To be asked often: where more than an interval has passed since the last time, this side has stood
        still itself, and what came meanwhile is yet to be read.
        """
        asleep, self._looked_at = now - self._looked_at, now
        if asleep > self.interval:
            self._heard = {key: last + asleep for key, last in self._heard.items()}
            self._unmet = {key: since + asleep for key, since in self._unmet.items()}
        return [(key, self._why(key)) for key in self._cut if self._lost(key, now)]

    def quiet(self, now: float) -> list[Key]:
        """Return who is connected and was not heard for ``limit`` seconds; ask ``silent`` first."""
        late = now - self.limit
        return [key for key, last in self._heard.items() if last < late and key not in self._cut]

    def stopped(self) -> str:
        """Return what to say of a quiet peer whose process is seen to be stopped."""
        return f"its process is stopped, and {self._missing()}"

    def _lost(self, key: Key, now: float) -> bool:
        if key in self._unmet:
            return now - self._unmet[key] > min(self.limit, self.patience)
        return now - self._heard[key] > self.limit

    def _why(self, key: Key) -> str:
        if key in self._unmet:
            tries, seconds = self._attempts[key], min(self.limit, self.patience)
            return f"nobody takes connections there: {tries} attempts in {seconds:g} s"
        return f"its connection is gone, and {self._missing()}"

    def _missing(self) -> str:
        return f"{self.max_failures} heartbeats in a row are missing, {self.limit:g} s"

    def beat_due(self, now: float) -> list[Key]:
        """Return whom to send a heartbeat now; everybody once per interval."""
        if now < self._next_beat:
            return []
        self._next_beat = now + self.interval
        return list(self._heard)
