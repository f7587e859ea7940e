"""Liveness at every tick of a manager: heartbeats go out, missed ones are told, who is gone is lost."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from pdcore.events import Events, HeartbeatMissed
from pdcore.host.process import ProcessLife, is_stopped, life_of
from pdcore.managers.chores import Chores
from pdcore.managers.endpoint import Endpoint
from pdcore.managers.liveness import Heartbeats
from pdcore.model import Deadline
from pdcore.wire import Heartbeat, Message, Route

__all__ = ["Pulse"]


@attrs.frozen
class Pulse:
    """Drives the heartbeats of one manager on its control thread; ``role`` has the peers, and loses them."""

    heartbeats: Heartbeats[Route]
    chores: Chores
    post: Callable[[Route, Message], None]
    events: Events
    role: Endpoint

    def beat(self, now: float, beat: Heartbeat) -> None:
        """Do what is due at ``now`` (monotonic seconds)."""
        each, beats = self.chores.each, self.heartbeats
        each("a heartbeat", beats.beat_due(now), lambda route: self._beat(route, beat))
        if self.events.on:
            self.chores.do("reporting missed heartbeats", lambda: self._report_missed(now))
        each("looking for a process", beats.without_connection(), self._look_for_process)
        each("losing a peer", beats.silent(now), lambda lost: self.role._lose(*lost))
        each("looking at a quiet process", beats.quiet(now), self._look_whether_it_is_stopped)

    def _beat(self, route: Route, beat: Heartbeat) -> None:
        """Send one, unless the peer was lost a moment ago, or is yet to answer: to who has not read the
        request to pair, this is a stranger."""
        if self.role._awaits_beats(route):
            self.post(route, beat)

    def _look_for_process(self, route: Route) -> None:
        """Lose a peer of this machine whose process has ended; of others nothing is known so soon."""
        process = self.role._process_of(route)
        if process is not None and life_of(process, Deadline(0.0)) is ProcessLife.ENDED:
            self.role._lose(route, f"{process} has ended")

    def _look_whether_it_is_stopped(self, route: Route) -> None:
        process = self.role._process_of(route)
        if process is not None and is_stopped(process):
            self.role._lose(route, self.heartbeats.stopped())

    def _report_missed(self, now: float) -> None:
        missed = self.heartbeats.missed(now)
        peers = self.role._peers() if missed else {}
        for route, in_a_row in missed:
            if route in peers:
                self.events.emit(HeartbeatMissed(self.events.node, peers[route], in_a_row))
