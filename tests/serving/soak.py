"""An hour of serving while servers are killed: ``.venv-vllm/bin/python -m tests.serving.soak --help``.

Requests flow all the time; every minute kill -9 takes prefill or decode, and it starts again. Every answer is
compared with a single server's. Between the halves and at the end requests stop, and all blocks must be free.
JSON lines go to ``soak.jsonl`` among the logs, the summary to stdout. Exit status 0: nothing was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .client import Answer, Prompt, ask, ask_all
from .demo import LOGS, say
from .engines import Engine, Role, missing
from .lives import Life, blocks_in_use, held
from .nursery import Nursery
from .pairs import Pair, routed, side, single
from .prompts import make_prompts
from .servers import Server, ServerError, Servers
from .tally import Clients, Journal, Tally

BLOCKS = ("--num-gpu-blocks-override", "512")
"""Too few for all prompts: they are cached, evicted and waited for."""
DRAINED = 90.0
"""Seconds for all blocks to become free after the last request."""


class Soak:
    """Kills, restarts and looks; one thread."""

    def __init__(self, running: Pair, journal: Journal, tally: Tally, every: float) -> None:
        self._pair, self._journal, self._tally, self._every = running, journal, tally, every
        self._lives = {s.name: Life(s.name) for s in (*running.prefills, *running.decodes)}
        self._starting: set[str] = set()
        self.over: list[Life] = []
        self.kills: Counter[str] = Counter()
        self.healed: list[int] = []
        """How many right answers came after the last kill of each half."""
        self._right = 0
        self.died: list[str] = []

    @property
    def lives(self) -> list[Life]:
        """Those that ended and those that last."""
        return [*self.over, *self._lives.values()]

    def _servers(self) -> tuple[Server, ...]:
        return (*self._pair.prefills, *self._pair.decodes)

    def look(self) -> None:
        """Take a sample of every server; one that ended by itself is a defect, and starts again."""
        for server in self._servers():
            if not server.alive():
                self.died.append(server.name)
                self._journal.write("died", name=server.name, log=server.end_of_log()[-3000:])
                self._restart(server)
            if server.name in self._starting and server.healthy():
                self._starting.discard(server.name)
                self._journal.write("ready", name=server.name)
            sample = held(server)
            self._lives[server.name].see(self._journal.now, sample)
            self._journal.write("sample", name=server.name, **sample)
        self._journal.write("counts", load=os.getloadavg()[0], **self._tally.counts())

    def _restart(self, server: Server) -> None:
        self.over.append(self._lives[server.name])
        self._lives[server.name] = Life(server.name)
        self._starting.add(server.name)
        server.restart()

    def kill(self, role: Role) -> None:
        """kill -9 for a server of that role that is up, if there is one, and start it again."""
        ready = [s for s in self._servers() if s.role is role and s.name not in self._starting]
        if not ready:
            self._journal.write("not killed", role=role.value, why="it is still starting")
            return
        victim = random.choice(ready)
        counts = self._tally.counts()
        self._right = counts["right"]
        self._journal.write("kill", name=victim.name, **counts)
        self.kills[victim.name] += 1
        self._restart(victim)

    def half(self, seconds: float, role: Role) -> None:
        """Kill servers of one role every so often, for that long."""
        end = self._journal.now + seconds
        strike = self._journal.now + self._every
        while self._journal.now < end:
            time.sleep(max(0.0, min(5.0, end - self._journal.now)))
            self.look()
            if self._journal.now >= strike and self._journal.now < end - self._every / 2:
                self.kill(role)
                strike += self._every
        until = time.monotonic() + 300
        while self._starting and time.monotonic() < until:
            time.sleep(1.0)
            self.look()
        self.healed.append(self._tally.counts()["right"] - self._right)

    def drained(self) -> dict[str, float]:
        """Wait until every server says that all its blocks are free; return the share that is not."""
        until = time.monotonic() + DRAINED
        while True:
            left = {s.name: blocks_in_use(s) for s in self._servers()}
            if not any(left.values()) or time.monotonic() > until:
                self._journal.write("drained", left=left)
                return left
            time.sleep(1.0)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="nixl_tcp")
    parser.add_argument("--seconds", type=float, default=3600.0, help="half of it kills prefill, half decode")
    parser.add_argument("--every", type=float, default=60.0, help="seconds from kill to kill (60)")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--timeout", type=float, default=60.0, help="of a request (60)")
    parser.add_argument("--prompts", type=int, default=300, help="different ones (300)")
    parser.add_argument("--prefills", type=int, default=1)
    parser.add_argument("--decodes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def expected(servers: Servers, prompts: Sequence[Prompt]) -> list[tuple[Prompt, Answer]]:
    """Every prompt with a single server's answer; the server is gone afterwards."""
    (alone,) = servers.up(single=single(Engine.VLLM))
    answers = ask_all(prompts, lambda p: ask(alone.url, p), 4)
    alone.kill()
    failed = [a.error for a in answers if a.error is not None]
    if failed:
        raise ServerError(f"the single server failed: {failed[0]}")
    return list(zip(prompts, answers, strict=True))


def soak(chosen: argparse.Namespace, servers: Servers, journal: Journal) -> dict[str, Any]:
    """Run all of it, and return the summary."""
    pool = expected(servers, make_prompts(chosen.prompts, chosen.seed, longest=1500, shared=64))
    sides = [(Role.PREFILL, n) for n in range(chosen.prefills)] + [
        (Role.DECODE, n) for n in range(chosen.decodes)
    ]
    started = servers.start(
        **{f"{role.value}-{n}": side(Engine.VLLM, role, chosen.backend, *BLOCKS) for role, n in sides}
    )
    left: list[dict[str, float]] = []
    tally = Tally()
    with routed(Engine.VLLM, started[: chosen.prefills], started[chosen.prefills :]) as running:
        work = Soak(running, journal, tally, chosen.every)
        clients = Clients(running.url, pool, tally, chosen.timeout)
        for role in (Role.PREFILL, Role.DECODE):
            say(f"{journal.now:.0f} s: {role.value} is killed every {chosen.every:.0f} s ...")
            with clients.asking(chosen.clients, chosen.seed):
                work.half(chosen.seconds / 2, role)
            left.append(work.drained())
            say(json.dumps(tally.counts()))
        work.look()
    warm = [life for life in work.lives if life.first is not None]
    summary = {
        **tally.counts(),
        "kills": dict(work.kills),
        "died": work.died,
        "errors by reason": dict(tally.errors.most_common(20)),
        "wrong ones": tally.wrong[:5],
        "blocks left after each half": left,
        "right after the last kill of each half": work.healed,
        "lives": [life.summary() for life in warm],
    }
    bad = tally.wrong or summary["unanswered"] or work.died or any(any(b.values()) for b in left)
    looked_at = {life.name for life in warm} == {server.name for server in started}
    good = not bad and all(work.healed) and looked_at and all(life.flat() for life in warm)
    return summary | {"good": good}


def main() -> int:
    """Exit status 0: no wrong answer, none missing, no server died, blocks free, memory flat."""
    chosen = arguments()
    lack = missing(Engine.VLLM)
    if lack is not None:
        say(lack)
        return 2
    journal = Journal(LOGS / "soak.jsonl")
    random.seed(chosen.seed)
    try:
        with Nursery.of(Engine.VLLM, LOGS) as nursery, Servers(LOGS, nursery.launch) as servers:
            summary = soak(chosen, servers, journal)
    except ServerError as error:
        say(str(error))
        return 1
    journal.write("summary", **summary)
    print(json.dumps(summary, indent=1))
    return 0 if summary["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
