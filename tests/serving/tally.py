"""What became of requests that flow all the time: clients that ask, the count of their answers, a journal."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .client import Answer, Prompt, ask
from .compare import reason

AFTER_ERROR = 0.25
"""Seconds that a client waits before it asks again."""


class Journal:
    """JSON lines; threads share it."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w")
        self._lock = threading.Lock()  # guards the file
        self._start = time.monotonic()

    @property
    def now(self) -> float:
        return time.monotonic() - self._start

    def write(self, kind: str, **what: Any) -> None:
        """Append one line, at once."""
        line = json.dumps({"at": round(self.now, 1), "kind": kind, **what})
        with self._lock:
            self._file.write(line + "\n")
            self._file.flush()


class Tally:
    """What became of the requests; the clients share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self.asked = 0
        self.answered = 0
        self.right = 0
        self.timeouts = 0
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []

    def begin(self) -> None:
        """A request goes out."""
        with self._lock:
            self.asked += 1

    def end(self, prompt: Prompt, wanted: Answer, answer: Answer) -> bool:
        """It came back; tell whether it was right."""
        right = answer.error is None and answer.tokens == wanted.tokens
        with self._lock:
            self.answered += 1
            if right:
                self.right += 1
            elif answer.error is None:
                self.wrong.append(f"{prompt.tokens[:8]}...: {wanted.tokens} became {answer.tokens}")
            elif answer.timed_out:
                self.timeouts += 1
            else:
                self.errors[reason(answer.error)] += 1
        return right

    def counts(self) -> dict[str, Any]:
        """All numbers now."""
        with self._lock:
            return {
                "asked": self.asked,
                "right": self.right,
                "wrong": len(self.wrong),
                "errors": sum(self.errors.values()),
                "timeouts": self.timeouts,
                "unanswered": self.asked - self.answered,
            }


class Clients:
    """Threads that ask one prompt after the other until they are told to stop."""

    def __init__(self, url: str, pool: Sequence[tuple[Prompt, Answer]], tally: Tally, timeout: float) -> None:
        self._url, self._pool, self._tally, self._timeout = url, pool, tally, timeout
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def _ask(self, seed: int) -> None:
        draw = random.Random(seed)
        while not self._stop.is_set():
            prompt, wanted = draw.choice(self._pool)
            self._tally.begin()
            answer = ask(self._url, prompt, timeout=self._timeout, stream=draw.random() < 0.5)
            if not self._tally.end(prompt, wanted, answer):
                self._stop.wait(AFTER_ERROR)

    @contextmanager
    def asking(self, count: int, seed: int) -> Iterator[None]:
        """Ask with so many threads meanwhile, and wait for the last answers."""
        self._stop.clear()
        self._threads = [
            threading.Thread(target=self._ask, args=(seed + n,), name=f"soak-client-{n}", daemon=True)
            for n in range(count)
        ]
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            until = time.monotonic() + 2 * self._timeout
            for thread in self._threads:
                thread.join(max(0.0, until - time.monotonic()))
