"""One seeded run of the pair: the same operations and the same faults for the same seed."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np

from pdcore.testing.faults.pair import FaultyPair
from pdcore.testing.faults.request import BrokenInvariantError
from pdcore.testing.faults.schedule import MOST_FAULTS, Fault, Schedule

__all__ = ["FaultyRun", "replay"]

ROOMS = 6
LONGEST_PAUSE = 0.05
WEIGHTS = {
    "open": 20,
    "open one": 2,
    "serve": 30,
    "send": 60,
    "abort": 4,
    "clear": 2,
    "clear ended": 40,
    "pause": 50,
    "restart": 1,
}
"""How often each operation is drawn."""


@attrs.frozen
class FaultyRun:
    """What was done, what went wrong by intent, what arrived, and the invariant that broke, or ''."""

    operations: tuple[str, ...]
    faults: tuple[str, ...]
    successes: int
    broken: str


def replay(
    seed: int, steps: int, rate: float, faults: Sequence[Fault] = MOST_FAULTS, *, packed: bool = False
) -> FaultyRun:
    """Run ``steps`` operations under the faults of a seed, then heal and prove that all ends.

    ``packed``: all bytes go through slots.
    """
    schedule = Schedule(seed, rate, faults)
    pair = FaultyPair(schedule, packed=packed)
    done: list[str] = []
    broken = ""
    random = np.random.default_rng(seed)
    names, weights = list(WEIGHTS), np.array(list(WEIGHTS.values()), float)
    try:
        for _ in range(steps):
            done.append(_step(pair, random, str(random.choice(names, p=weights / weights.sum()))))
            pair.look()
        pair.finish()
    except BrokenInvariantError as error:
        broken = str(error)
    finally:
        pair.close()
    return FaultyRun(tuple(done), tuple(schedule.happened), pair.successes, broken)


def _step(pair: FaultyPair, random: np.random.Generator, name: str) -> str:
    room, pages, prefill = int(random.integers(ROOMS)), int(random.integers(5)), bool(random.integers(2))
    seconds = float(random.random() * LONGEST_PAUSE)
    side = "prefill" if prefill else "decode"
    match name:
        case "open":
            pair.open(room, pages, prefill)
            return f"open room {room}, {pages} pages, {side} first"
        case "open one":
            pair.open_one(room, pages, prefill)
            return f"open room {room}, {pages} pages, on {side} only"
        case "serve":
            pair.open(room, pages, prefill)
            pair.send(room, pages)
            return f"open room {room}, {pages} pages, {side} first, and send all"
        case "send":
            pair.send(room, pages + 1)
            return f"send {pages + 1} pages of room {room}"
        case "abort":
            pair.abort(room, prefill)
        case "clear":
            pair.clear(room, prefill)
        case "clear ended":
            pair.clear_ended()
            return name
        case "restart":
            pair.restart(prefill)
            return f"restart {side}"
        case _:
            pair.pause(seconds)
            return f"pause {seconds:.3f} s"
    return f"{name} room {room} on {side}"
