"""Who is alive: pure bookkeeping of heartbeats. The control thread of a manager owns and drives it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

import attrs

__all__ = ["Heartbeats"]

Key = TypeVar("Key", bound=Hashable)


@attrs.define
class Heartbeats(Generic[Key]):
    """Peers by key with the monotonic time (seconds) at which each was last heard.

    All peers are checked at once and none is waited for, so a silent one delays nobody.
    """

    interval: float
    max_failures: int
    _heard: dict[Key, float] = attrs.field(factory=dict, init=False)
    _missed: dict[Key, int] = attrs.field(factory=dict, init=False)
    _next_beat: float = attrs.field(default=0.0, init=False)

    def track(self, key: Key, now: float) -> None:
        """Start expecting heartbeats of a peer."""
        self._heard[key] = now

    def forget(self, key: Key) -> None:
        """Stop expecting them."""
        self._heard.pop(key, None)
        self._missed.pop(key, None)

    def heard(self, key: Key, now: float) -> bool:
        """Note a heartbeat; return whether the peer is tracked."""
        if key not in self._heard:
            return False
        self._heard[key] = now
        return True

    def missed(self, now: float) -> list[tuple[Key, int]]:
        """Return who missed another heartbeat since this was asked last, and how many in a row by now.

        One that is half an interval late is missed.
        """
        counts = {key: int((now - last) / self.interval - 0.5) for key, last in self._heard.items()}
        more = [(key, count) for key, count in counts.items() if count > self._missed.get(key, 0)]
        self._missed = counts
        return more

    def silent(self, now: float) -> list[Key]:
        """Return the peers that missed ``max_failures`` heartbeats in a row."""
        limit = now - self.interval * self.max_failures
        return [key for key, last in self._heard.items() if last < limit]

    def beat_due(self, now: float) -> list[Key]:
        """Return whom to send a heartbeat now; everybody once per interval."""
        if now < self._next_beat:
            return []
        self._next_beat = now + self.interval
        return list(self._heard)
