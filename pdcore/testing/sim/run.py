"""Worlds one after the other, until something is violated."""

from __future__ import annotations

import gc

import attrs

from pdcore.testing.sim.memory import ViolationError
from pdcore.testing.sim.world import World

__all__ = ["Figures", "ViolatedWorld", "run", "shrunk"]

GARBAGE = 8
"""Worlds between two collections: each is all circles, and garbage only once it is over."""


@attrs.define
class Figures:
    """What was done."""

    worlds: int = 0
    rooms: int = 0
    steps: int = 0
    successes: int = 0
    failures: int = 0
    pages: int = 0

    def add(self, world: World, rooms: int) -> None:
        """Count a world."""
        self.worlds += 1
        self.rooms += rooms
        self.steps += world.clock.steps
        self.successes += world.router.successes
        self.failures += world.router.failures
        self.pages += world.engine.copied

    def told(self, seed: int, seconds: float) -> str:
        """Return all in one line."""
        return (
            f"seeds {seed} to {seed + self.worlds - 1}: {self.rooms} rooms in {seconds:.1f} s "
            f"({self.rooms / max(seconds, 1e-9):.0f}/s), {self.steps} steps, {self.pages} pages, sides that "
            f"succeeded {self.successes}, failed {self.failures}"
        )


@attrs.frozen
class ViolatedWorld:
    """A world in which something does not hold, and what."""

    seed: int
    what: str


def run(seed: int, rooms: int, each: int, figures: Figures) -> ViolatedWorld | None:
    """Run worlds of so many requests ``each``; return the first that fails.

    Where the garbage collector is off, it runs now and then between worlds.
    """
    while figures.rooms < rooms:
        number = min(each, rooms - figures.rooms)
        world = World(seed, number)
        try:
            world.run()
        except ViolationError as error:
            figures.add(world, number)
            return ViolatedWorld(seed, str(error))
        figures.add(world, number)
        seed += 1
        if not gc.isenabled() and figures.worlds % GARBAGE == 0:
            del world
            gc.collect()
    return None


def shrunk(seed: int, rooms: int) -> int:
    """Return the fewest requests, found by halving, with which the world of a seed fails."""
    low, high = 1, rooms
    while low < high:
        middle = (low + high) // 2
        if run(seed, middle, middle, Figures()) is None:
            low = middle + 1
        else:
            high = middle
    return high
