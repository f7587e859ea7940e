"""pdcore beside the engine's own transfer code: ``python -m tests.serving.compare_own --help``.

Four engines at once overload a small machine, and no figure means anything then: one pair is up at a time,
they take turns, and both get the same prompts. Run it in the engine's environment on a machine that does
nothing else; the load is in the table.

What spins takes the models' cores, too. So the processes of an engine that spins (vLLM's) come from the
nursery, which lets them wait for one another without spinning, and NixlConnector's progress threads wait
100 us between two looks; as its users run it, it is several times slower on two cores. SGLang's servers are
spawned as its users do.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

import attrs

from .client import Answer, Prompt, ask_all
from .compare import quantile, table
from .demo import LOGS, say
from .engines import Engine, missing
from .nursery import Launch, Nursery, spawned
from .pairs import OWN, Pair, pair
from .prompts import make_prompts
from .servers import ServerError, Servers

BACKENDS = {Engine.VLLM: "nixl_tcp", Engine.SGLANG: "mooncake_tcp"}
"""Over which each engine's own code moves the bytes, too: NixlConnector, and mooncake_tcp."""
WARM_UP = 24


@attrs.frozen
class Turn:
    """One pair for one turn."""

    who: str
    number: int
    answers: Sequence[Answer]
    seconds: float
    load: float

    @property
    def good(self) -> list[Answer]:
        return [a for a in self.answers if a.error is None]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.good) / self.seconds

    def first(self, share: float) -> float:
        """Milliseconds to the first token."""
        return 1e3 * quantile([a.first for a in self.good if a.first is not None], share)

    @property
    def row(self) -> list[object]:
        """For the table."""
        failed = len(self.answers) - len(self.good)
        times = [f"{self.first(0.5):.1f}", f"{self.first(0.95):.1f}"]
        return [self.who, self.number, len(self.good), failed, f"{self.rate:.2f}", *times, f"{self.load:.1f}"]


HEAD = ["", "turn", "requests", "failed", "requests/s", "first token p50, ms", "p95, ms", "load"]


class Asking:
    """Clients that draw from one sequence of prompts until time is up."""

    def __init__(self, running: Pair, prompts: Sequence[Prompt], seconds: float) -> None:
        self._pair, self._prompts = running, itertools.cycle(prompts)
        self._until = time.monotonic() + seconds
        self._lock = threading.Lock()  # guards the sequence and the answers
        self.answers: list[Answer] = []

    def _ask(self) -> None:
        while time.monotonic() < self._until:
            with self._lock:
                prompt = next(self._prompts)
            answer = self._pair.ask(prompt)
            with self._lock:
                self.answers.append(answer)

    def run(self, in_flight: int) -> float:
        """Ask with so many clients; return the seconds until the last answer."""
        start = time.monotonic()
        threads = [threading.Thread(target=self._ask, name=f"compare-{n}") for n in range(in_flight)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.monotonic() - start


def take_turn(servers: Servers, chosen: argparse.Namespace, backend: str, number: int) -> Turn:
    """Start a pair, warm it up, ask for the turn's time, and end it."""
    prompts = make_prompts(4000, chosen.seed + number, longest=chosen.longest)
    with pair(servers, chosen.engine, backend) as running:
        ask_all(make_prompts(WARM_UP, 10_000 + number, longest=300), running.ask, chosen.in_flight)
        asking = Asking(running, prompts, chosen.seconds)
        seconds = asking.run(chosen.in_flight)
        load = os.getloadavg()[0]
    who = f"{chosen.engine.value}'s own" if backend == OWN else f"pdcore {backend}"
    return Turn(who, number, asking.answers, seconds, load)


def summary(turns: Sequence[Turn]) -> list[list[object]]:
    """The medians of each side's turns, and pdcore's divided by the engine's own."""
    sides: dict[str, list[float]] = {}
    for who in dict.fromkeys(turn.who for turn in turns):
        of = [turn for turn in turns if turn.who == who]
        sides[who] = [
            statistics.median(values)
            for values in zip(*((t.rate, t.first(0.5), t.first(0.95)) for t in of), strict=True)
        ]
    rows: list[list[object]] = [
        [f"{who}, median", "", "", "", f"{rate:.2f}", f"{half:.1f}", f"{most:.1f}", ""]
        for who, (rate, half, most) in sides.items()
    ]
    own, ours = sides.values()
    ratios = [f"{b / a:.2f}" if a else "-" for a, b in zip(own, ours, strict=True)]
    return [*rows, ["pdcore / own", "", "", "", *ratios, ""]]


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", type=Engine, default=Engine.VLLM, help="vllm (default) or sglang")
    parser.add_argument("--backend", help="pdcore's; default: what the engine's own code uses, too")
    parser.add_argument("--seconds", type=float, default=180.0, help="of a turn, without the start (180)")
    parser.add_argument("--turns", type=int, default=3, help="of each side (3)")
    parser.add_argument("--in-flight", type=int, default=2)
    parser.add_argument("--longest", type=int, default=1500, help="tokens of the longest prompt")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    """Exit status 0: no request failed."""
    chosen = arguments()
    lack = missing(chosen.engine)
    if lack is not None:
        say(lack)
        return 2
    backend = chosen.backend or BACKENDS[chosen.engine]
    turns: list[Turn] = []
    try:
        with ExitStack() as stack:
            launch: Launch = spawned
            if chosen.engine.spins:
                launch = stack.enter_context(Nursery.of(chosen.engine, LOGS)).launch
            servers = stack.enter_context(Servers(LOGS, launch))
            for number in range(chosen.turns):
                order = (OWN, backend) if number % 2 == 0 else (backend, OWN)  # what drifts hits both alike
                for side in order:
                    turns.append(take_turn(servers, chosen, side, number))
                    say(table([turns[-1].row], HEAD))
    except ServerError as error:
        say(str(error))
        return 1
    turns.sort(key=lambda turn: (not turn.who.endswith("own"), turn.number))
    print(f"{chosen.in_flight} requests at a time, {os.cpu_count()} cores")
    print(table([*(turn.row for turn in turns), *summary(turns)], HEAD))
    return 0 if all(len(t.good) == len(t.answers) for t in turns) else 1


if __name__ == "__main__":
    sys.exit(main())
