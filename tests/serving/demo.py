"""``make serve-demo``: prompts through prefill, decode and a router; tokens compared with one server's."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from .client import Answer, Prompt, ask, in_waves
from .compare import Comparison, compare, quantile, table
from .engines import ROOT, Engine, missing
from .pairs import Pair, pair, single
from .prompts import make_prompts
from .servers import ServerError, Servers

LOGS = Path(os.environ.get("PDCORE_SERVING_LOGS", ROOT / ".serving"))


@attrs.frozen
class Run:
    """All prompts, asked one way."""

    answers: Sequence[Answer]
    seconds: float

    def first(self, share: float) -> float:
        """Milliseconds to the first token that this share of the requests does not exceed."""
        return 1e3 * quantile([a.first for a in self.answers if a.first is not None], share)


def run(prompts: Sequence[Prompt], one: Callable[[Prompt], Answer], in_flight: int) -> Run:
    """Ask all, from one at a time up to ``in_flight``."""
    start = time.monotonic()
    answers = in_waves(prompts, one, in_flight)
    return Run(answers, time.monotonic() - start)


def say(text: str) -> None:
    """Progress, beside the data on stdout."""
    print(text, file=sys.stderr, flush=True)


def of_rooms(running: Pair) -> list[list[object]]:
    """What pdcore says of the rooms that succeeded, as rows of the table."""
    rows: list[list[object]] = []
    for title, server, key in (
        ("pdcore moves the bytes, ms", running.prefill, "transfer"),
        ("pdcore on decode, room open to success, ms", running.decode, "total"),
    ):
        taken = [1e3 * room[key] for room in server.rooms() if room["status"] == "SUCCESS"]
        rows.append([f"{title}, median", "", quantile(taken, 0.5)])
        rows.append([f"{title}, 95 %", "", quantile(taken, 0.95)])
    moved = sum(room["nbytes"] for room in running.prefill.rooms() if room["status"] == "SUCCESS")
    return [["MB moved by pdcore", "", moved / 1e6], *rows]


def report(alone: Run, paired: Run, compared: Comparison, rooms: list[list[object]]) -> str:
    """The table that the demo prints."""
    rows: list[list[object]] = [
        ["requests", len(alone.answers), compared.count],
        ["tokens equal to the single server's", "", compared.equal],
        ["tokens different", "", len(compared.different)],
        ["failed", "", len(compared.failed)],
        ["time to first token, ms, median", alone.first(0.5), paired.first(0.5)],
        ["time to first token, ms, 95 %", alone.first(0.95), paired.first(0.95)],
        ["seconds in all", alone.seconds, paired.seconds],
    ]
    return table([*rows, *rooms], ["", "single", "prefill + decode"])


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="make serve-demo ARGS=...", description=__doc__)
    parser.add_argument("--engine", type=Engine, default=Engine.VLLM, help="vllm (default) or sglang")
    parser.add_argument(
        "--backend", default="local", help="a backend of pdcore (local), or 'own': the engine's"
    )
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--in-flight", type=int, default=8, help="requests at a time, at most (8)")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    """Exit status 0: every answer is equal."""
    chosen = arguments()
    lack = missing(chosen.engine)
    if lack is not None:
        say(lack)
        return 2
    prompts = make_prompts(chosen.requests, chosen.seed, shared=64)
    longest = max(len(p.tokens) for p in prompts)
    say(f"starting three {chosen.engine.value} servers, logs in {LOGS} ...")
    try:
        with Servers(LOGS) as servers:
            (alone,) = servers.start(single=single(chosen.engine))
            with pair(servers, chosen.engine, chosen.backend) as running:
                alone.ready()
                say(f"asking for {len(prompts)} prompts of up to {longest} tokens: the single server ...")
                wanted = run(prompts, lambda p: ask(alone.url, p), chosen.in_flight)
                say("... prefill and decode, through the router ...")
                got = run(prompts, running.ask, chosen.in_flight)
                rooms = of_rooms(running)
                load = os.getloadavg()[0]
    except ServerError as error:
        say(str(error))
        return 1
    compared = compare(prompts, wanted.answers, got.answers)
    print(f"{chosen.engine.value} over {chosen.backend}, {os.cpu_count()} cores, load {load:.1f}")
    print(report(wanted, got, compared, rooms))
    print(compared)
    return 0 if compared.equal == compared.count else 1


if __name__ == "__main__":
    sys.exit(main())
