"""Waits until the sources of chunks may be read, so that neither a scheduler nor a lane has to."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

import attrs

from pdcore.host.fork import Birthplace
from pdcore.model import Deadline
from pdcore.prefill.readiness import SourceReadiness

__all__ = ["Waiter"]

SOONEST, LATEST = 0.0005, 0.005
"""Seconds from one question to the next, at least and at most."""
PATIENCE = 0.05
"""How much later than its event a source may be read, as a part of the time that it was waited for."""

_log = logging.getLogger("pdcore.transfer")

Then = Callable[[Exception | None], None]
"""Told once when the source may be read, or of what ``ready`` raised."""


@attrs.frozen(eq=False)
class _Watch:
    ready: SourceReadiness
    wanted: Callable[[], bool]
    then: Then
    since: float = attrs.field(factory=time.monotonic)

    @property
    def pause(self) -> float:
        """Seconds until the next question: the longer it takes, the fewer there are."""
        return min(max((time.monotonic() - self.since) * PATIENCE, SOONEST), LATEST)

    def ask(self) -> bool:
        """Tell if the source may be read, or nobody wants it; return whether this is over."""
        asks = self.ready.asks
        assert asks is not None
        try:
            if self.wanted() and not asks():
                return False
        except Exception as error:  # it is the caller's
            self.tell(error)
        else:
            self.tell(None)
        return True

    def wait(self) -> Exception | None:
        """Return when the source may be read, or what was raised instead."""
        waits = self.ready.waits
        assert waits is not None
        try:
            waits()
        except Exception as error:  # it is the caller's
            return error
        return None

    def tell(self, error: Exception | None) -> None:
        try:
            self.then(error)
        # A room reports its own failures; what escapes is a defect, and others wait here too.
        except Exception:
            _log.exception("room %s could not go on when its source was ready", self.ready.room)


class Waiter:
    """Events are asked in turns by one thread, ``pdcore-ready``. A callable that blocks has a thread for as
    long, ``pdcore-ready-<n>``, so that one which never returns delays no other; then it serves the next.

    Threads start when they are needed. The lock of ``_changed`` guards all fields.
    """

    def __init__(self) -> None:
        self._birthplace = Birthplace(self)
        self._changed = threading.Condition()
        self._asked: list[_Watch] = []
        self._asker: threading.Thread | None = None
        self._jobs: queue.SimpleQueue[_Watch | None] = queue.SimpleQueue()
        self._blocked: list[threading.Thread] = []
        self._busy: set[threading.Thread] = set()  # those in a callable
        self._free = 0  # how many threads have no job, not even one in the queue
        self._closed = False

    def watch(self, ready: SourceReadiness, wanted: Callable[[], bool], then: Then) -> None:
        """Call ``then`` when a source may be read, from a thread of this; it may never be called once
        nobody wants it, or after ``close``."""
        self._birthplace.require("a waiter")
        watch = _Watch(ready, wanted, then)
        with self._changed:
            if self._closed:
                return
            if ready.asks is not None:
                self._asked.append(watch)
                if self._asker is None:
                    self._asker = _started("pdcore-ready", self._ask_in_turns)
                self._changed.notify()
                return
            self._jobs.put(watch)
            if self._free:
                self._free -= 1
            else:
                name = f"pdcore-ready-{len(self._blocked) + 1}"
                self._blocked.append(_started(name, self._wait_in_turns))

    def close(self, deadline: Deadline) -> None:
        """End the threads; not waited for is one in a caller's callable, which ends when that returns."""
        with self._changed:
            self._closed = True
            self._asked.clear()
            self._changed.notify()
            ending = [thread for thread in self._blocked if thread not in self._busy]
            ending += [self._asker] if self._asker is not None else []
            for _ in self._blocked:
                self._jobs.put(None)
        for thread in ending:
            if thread is not threading.current_thread():
                thread.join(deadline.remaining())

    def _ask_in_turns(self) -> None:
        while True:
            with self._changed:
                while not self._asked and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                asked = list(self._asked)
            over = {watch for watch in asked if watch.ask()}
            with self._changed:
                known = set(asked)
                news = any(watch not in known for watch in self._asked)
                self._asked = [watch for watch in self._asked if watch not in over]
                if self._asked and not over and not news and not self._closed:
                    self._changed.wait(min(watch.pause for watch in self._asked))

    def _wait_in_turns(self) -> None:
        me = threading.current_thread()
        while (watch := self._jobs.get()) is not None:
            with self._changed:
                self._busy.add(me)
            error = None if self._closed else watch.wait()
            with self._changed:
                self._busy.discard(me)
                if self._closed:
                    return
            watch.tell(error)
            with self._changed:
                self._free += 1


def _started(name: str, target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread
