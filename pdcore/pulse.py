"""What a manager does for liveness with every tick: sends heartbeats, tells which are missed, loses who is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from pdcore.backend import PeerIdentity
from pdcore.chores import Chores
from pdcore.events import Events, HeartbeatMissed
from pdcore.liveness import Heartbeats
from pdcore.model import Deadline
from pdcore.process import Life, ProcessIdentity, life_of
from pdcore.wire import Heartbeat, Message, Route

__all__ = ["Pulse"]


@attrs.frozen
class Pulse:
    """Drives the heartbeats of one manager on its control thread.

    ``lose`` is called with a peer that is gone, and why; ``peers`` and ``process_of`` say who is paired.
    """

    heartbeats: Heartbeats[Route]
    chores: Chores
    post: Callable[[Route, Message], None]
    events: Events
    peers: Callable[[], Mapping[Route, PeerIdentity]]
    process_of: Callable[[Route], ProcessIdentity | None]
    lose: Callable[[Route, str], None]

    def beat(self, now: float, beat: Heartbeat) -> None:
        """Do what is due at ``now`` (monotonic seconds)."""
        each, beats = self.chores.each, self.heartbeats
        each("a heartbeat", beats.beat_due(now), lambda route: self.post(route, beat))
        if self.events.on:
            self.chores.do("reporting missed heartbeats", lambda: self._report_missed(now))
        each("looking for a process", beats.without_connection(), self._look_for_process)
        each("losing a peer", beats.silent(now), lambda lost: self.lose(*lost))

    def _look_for_process(self, route: Route) -> None:
        """Lose a peer of this machine whose process has ended; of others nothing is known so soon."""
        process = self.process_of(route)
        if process is not None and life_of(process, Deadline(0.0)) is Life.ENDED:
            self.lose(route, f"{process} has ended")

    def _report_missed(self, now: float) -> None:
        missed = self.heartbeats.missed(now)
        peers = self.peers() if missed else {}
        for route, in_a_row in missed:
            if route in peers:
                self.events.emit(HeartbeatMissed(self.events.node, peers[route], in_a_row))
