"""What carries messages: each link keeps its order, unless something is lost, held up, or said twice."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from pdcore.testing.sim.clock import Clock
from pdcore.testing.sim.faults import Faults
from pdcore.wire import Message

if TYPE_CHECKING:
    from pdcore.testing.sim.node import SimulatedRank

__all__ = ["Network"]

LATENCY = 0.001
NOTICED = 3.0
"""Seconds until a side notices that it does not hear another."""


class Network:
    """A link leads from one life of a node to one of another. As the channel does, the far end takes each
    message once, and none after a later one."""

    def __init__(self, clock: Clock, chance: random.Random, faults: Faults) -> None:
        self._clock, self._chance, self.faults = clock, chance, faults
        self._sent: dict[tuple[int, int], int] = {}
        self._taken: dict[tuple[int, int], int] = {}
        self._arrives: dict[tuple[int, int], float] = {}
        self._cut: dict[tuple[int, int], float] = {}

    def send(self, source: SimulatedRank, target: SimulatedRank, message: Message) -> None:
        """Carry a message from one life of a node to one of another."""
        link, chance, faults = (source.life, target.life), self._chance, self.faults
        number = self._sent[link] = self._sent.get(link, 0) + 1
        if self._cut.get(link, 0.0) > self._clock.now:
            return
        draw = chance.random()
        if draw < faults.drop:
            return
        arrives = max(self._clock.now + LATENCY * (0.2 + chance.random()), self._arrives.get(link, 0.0))
        deliver = partial(self._deliver, link, number, target, source, message)
        if draw < faults.drop + faults.slow:
            self._clock.after(arrives - self._clock.now + chance.expovariate(2.0), deliver)
            return
        self._arrives[link] = arrives
        self._clock.after(arrives - self._clock.now, deliver)
        if draw < faults.drop + faults.slow + faults.repeat:
            self._clock.after(arrives - self._clock.now + chance.random(), deliver)

    def cut(self, source: SimulatedRank, target: SimulatedRank, seconds: float) -> None:
        """Lose all that goes one way, for so long; who does not hear the other for too long gives it up.

        For no time at all: the other only believes that it is lost, because it was held up itself.
        """
        if not seconds:
            target.loses(source, "it was not heard of")
            return
        self._cut[source.life, target.life] = self._clock.now + seconds
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
        link: tuple[int, int],
        number: int,
        target: SimulatedRank,
        source: SimulatedRank,
        message: Message,
    ) -> None:
        if number <= self._taken.get(link, 0) or not target.alive:
            return
        self._taken[link] = number
        target.hears(source, message)
