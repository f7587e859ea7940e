"""What carries messages: each link keeps its order, unless something is lost, held up, or said twice."""

from __future__ import annotations

import random
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

import attrs

from pdcore.testing.sim.clock import Clock
from pdcore.testing.sim.faults import Faults
from pdcore.wire import Message, Route

if TYPE_CHECKING:
    from pdcore.testing.sim.node import SimulatedRank

__all__ = ["Network"]

LATENCY = 0.001
NOTICED = 3.0
"""Seconds until a side notices that it does not hear another."""


@attrs.define(eq=False)
class OneWay:
    """The way from one life of a node to one of another: messages ``sent``, the last that was ``taken``, and
    when the last in order ``arrives``; it loses all until ``cut``."""

    sent: int = 0
    taken: int = 0
    arrives: float = 0.0
    cut: float = 0.0


class Network:
    """As the channel does, the far end of a link takes each message once, and none after a later one."""

    def __init__(self, clock: Clock, chance: random.Random, faults: Faults) -> None:
        self._clock, self._chance, self.faults = clock, chance, faults
        self._links: defaultdict[tuple[int, int], OneWay] = defaultdict(OneWay)

    def send(self, source: SimulatedRank, target: SimulatedRank, message: Message, over: Route) -> None:
        """Carry a message from one life of a node to one of another, who knows the connection as ``over``."""
        link, clock = self._links[source.life, target.life], self._clock
        chance, faults, now = self._chance, self.faults, clock.now
        link.sent += 1
        if link.cut > now:
            return
        draw = chance.random()
        if draw < faults.drop:
            return
        arrives = max(now + LATENCY * (0.2 + chance.random()), link.arrives)
        deliver = partial(self._deliver, link, link.sent, target, source, message, over)
        if draw < faults.drop + faults.slow:
            clock.after(arrives - now + chance.expovariate(2.0), deliver)
            return
        link.arrives = arrives
        clock.after(arrives - now, deliver)
        if draw < faults.drop + faults.slow + faults.repeat:
            clock.after(arrives - now + chance.random(), deliver)

    def cut(self, source: SimulatedRank, target: SimulatedRank, seconds: float) -> None:
        """Lose all that goes one way, for so long; who does not hear the other for too long gives it up.

        For no time at all: the other only believes that it is lost, because it was held up itself.
        """
        if not seconds:
            target.loses(source, "it was not heard of")
            return
        self._links[source.life, target.life].cut = self._clock.now + seconds
        if seconds > NOTICED:
            self._clock.after(NOTICED, partial(target.loses, source, "it is not heard of"))
            if self._chance.random() < 0.7:
                delay = NOTICED + self._chance.random()
                self._clock.after(delay, partial(source.loses, target, "it is not heard of"))
        else:
            self._clock.after(seconds, partial(source.meets_again, target))
            self._clock.after(seconds, partial(target.meets_again, source))

    def _deliver(
        self,
        link: OneWay,
        number: int,
        target: SimulatedRank,
        source: SimulatedRank,
        message: Message,
        over: Route,
    ) -> None:
        if number <= link.taken or not target.alive:
            return
        link.taken = number
        target.hears(source, message, over)
