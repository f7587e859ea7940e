"""What both engines have to show, once for both: each case is given servers and says what is wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from .client import Answer, Prompt, ask_all, hang_up, in_waves
from .compare import Comparison, compare
from .engines import Role
from .fixtures import Wanted
from .pairs import Pair, routed
from .prompts import make_prompts
from .servers import Server

SOON = 60.0
"""Seconds for what a server does by itself once nobody asks it for anything."""
AFTER_ERROR = 0.5
"""Seconds until who was refused asks again: who asks faster keeps the servers from starting."""


def require_equal(running: Pair, wanted: Wanted, prompts: Sequence[Prompt]) -> None:
    """Ask from one at a time up to eight, and require the single server's tokens."""
    right = wanted(prompts)
    compared = compare(prompts, right, in_waves(prompts, running.ask))
    assert compared.equal == len(prompts), f"{compared}\n{running.decode.end_of_log()}"


def require_rooms(running: Pair, least: int) -> None:
    """pdcore carried them, and not the engine's recomputation: that many rooms succeeded on both sides."""
    for server in (running.prefill, running.decode):
        done = [room for room in server.rooms() if room["status"] == "SUCCESS"]
        assert len(done) >= least, f"{server.name}: {len(done)} rooms succeeded, not {least}"
        assert all(room["pages"] for room in done if room["nbytes"])


def corrupted(running: Pair, wanted: Wanted) -> Comparison:
    """Let prefill send the bytes of other pages: the control of all comparisons."""
    prompts = make_prompts(16, 911, longest=600, most_tokens=24)
    right = wanted(prompts)
    with running.prefill.corrupting():
        return compare(prompts, right, ask_all(prompts, running.ask))


class Flow:
    """Prompts that are asked in the background while a test does something to the servers."""

    def __init__(self, running: Pair, wanted: Wanted, seed: int, in_flight: int = 4) -> None:
        self._pair, self._prompts = running, make_prompts(64, seed, longest=600, most_tokens=24)
        self._right = wanted(self._prompts)
        self._over = threading.Event()
        self._lock = threading.Lock()  # guards what was asked and answered
        self._next = 0
        self._asked: list[int] = []
        self._got: list[Answer] = []
        self._threads = [
            threading.Thread(target=self._ask, name=f"serving-flow-{n}", daemon=True)
            for n in range(in_flight)
        ]

    def _ask(self) -> None:
        while not self._over.is_set():
            with self._lock:
                index = self._next % len(self._prompts)
                self._next += 1
            answer = self._pair.ask(self._prompts[index], timeout=SOON)
            with self._lock:
                self._asked.append(index)
                self._got.append(answer)
            if answer.error is not None:
                self._over.wait(AFTER_ERROR)

    def answered(self) -> int:
        """How many answers came so far, errors too."""
        with self._lock:
            return len(self._got)

    def await_more(self, count: int) -> None:
        """Wait until that many further answers have come."""
        until, least = time.monotonic() + SOON, self.answered() + count
        while self.answered() < least:
            assert time.monotonic() < until, f"not {count} answers came within {SOON:.0f} s"
            time.sleep(0.02)

    def __enter__(self) -> Flow:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * SOON)
            assert not thread.is_alive(), "a request has no answer, neither an error nor a timeout"

    def compared(self) -> Comparison:
        """All that came."""
        prompts = [self._prompts[i] for i in self._asked]
        return compare(prompts, [self._right[i] for i in self._asked], self._got)


def kill_and_restart(running: Pair, wanted: Wanted, victim: Server, seed: int) -> None:
    """kill -9 while requests flow: no wrong answer, none missing, the other server lives, and all heals."""
    other = running.decode if victim.role is Role.PREFILL else running.prefill
    with Flow(running, wanted, seed) as flow:
        flow.await_more(4)
        victim.kill()
        flow.await_more(8)
        assert other.alive(), other.end_of_log()
        victim.start().ready()
    compared = flow.compared()
    assert not compared.different, str(compared)
    assert not [f for f in compared.failed if (f.error or "").startswith("no answer within")], str(compared)
    assert other.alive(), other.end_of_log()
    require_equal(running, wanted, make_prompts(16, seed + 1, longest=600, most_tokens=24))


def two_prefills(running: Pair, wanted: Wanted, second: Server, seed: int) -> None:
    """Two prefill servers behind one router: all answers equal, and when one is killed the other's go on."""
    with routed(running.engine, [running.prefill, second], [running.decode]) as both:
        require_equal(both, wanted, make_prompts(24, seed, longest=600, most_tokens=24))
        require_rooms(Pair(both.engine, both.url, (second,), both.decodes), 12)
        with Flow(both, wanted, seed + 1) as flow:
            flow.await_more(4)
            second.kill()
            flow.await_more(16)
        compared = flow.compared()
        assert not compared.different, str(compared)
        assert compared.equal >= 8, str(compared)
    assert running.decode.alive(), running.decode.end_of_log()


def hang_ups(running: Pair, wanted: Wanted, seed: int) -> None:
    """Clients that go at every phase cost nobody anything."""
    prompts = make_prompts(12, seed, longest=1500, most_tokens=200)
    for index, prompt in enumerate(prompts):
        hang_up(running.url, Prompt(prompt.tokens, 200), 0.04 * index)
    assert running.prefill.alive(), running.prefill.end_of_log()
    assert running.decode.alive(), running.decode.end_of_log()
    require_equal(running, wanted, make_prompts(16, seed + 1, longest=600, most_tokens=24))


def eventually(true: Callable[[], bool], what: str) -> None:
    """Wait until something holds that a server tells only who asks."""
    until = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < until, f"after {SOON:.0f} s still not: {what}"
        time.sleep(0.2)
