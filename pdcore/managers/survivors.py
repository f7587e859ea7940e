"""The word of a surviving rank: a process that ended on another machine, or in another namespace, is known by
who is paired with us and lives beside it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

from pdcore.host.process import ProcessIdentity, ProcessLife, life_of
from pdcore.host.sockets import orphans_with_bytes
from pdcore.model import Deadline
from pdcore.wire import LifeAnswer, LifeQuestion, Message, Route

__all__ = ["ASK_AGAIN", "Survivors"]

ASK_AGAIN = 1.0
"""Seconds after which a question that nobody has answered with yes is asked again."""
MOST_REMEMBERED = 1_024


class Survivors:
    """Asks paired peers for a process, and answers them. The lock guards ``_ended`` and ``_asked``.

    ``peers`` are the routes of those that may know, ``process_of`` tells their process.
    """

    def __init__(
        self,
        post: Callable[[Route, Message], None],
        peers: Callable[[], Collection[Route]],
        process_of: Callable[[Route], ProcessIdentity | None],
    ) -> None:
        self._post, self._peers, self._process_of = post, peers, process_of
        self._lock = threading.Lock()
        self._ended: dict[ProcessIdentity, None] = {}
        self._asked: dict[ProcessIdentity, float] = {}

    def ended(self, process: ProcessIdentity) -> bool:
        """Whether one that lives beside a process has said that it ended; if not, they are asked."""
        now = time.monotonic()
        with self._lock:
            if process in self._ended:
                return True
            if now < self._asked.get(process, 0.0) + ASK_AGAIN:
                return False
            self._asked = {p: at for p, at in self._asked.items() if now < at + ASK_AGAIN} | {process: now}
        for route in self._peers():
            if self._beside(route, process):
                self._post(route, LifeQuestion(process))
        return False

    def heard(self, route: Route, message: Message) -> bool:
        """Take a message that is about a process; False if it is about something else."""
        if isinstance(message, LifeQuestion):
            self._post(route, LifeAnswer(message.process, _has_ended(message.process)))
        elif isinstance(message, LifeAnswer):
            if message.ended and self._beside(route, message.process):
                with self._lock:
                    recent = list(self._ended)[-MOST_REMEMBERED:]
                    self._ended = dict.fromkeys([*recent, message.process])
        else:
            return False
        return True

    def _beside(self, route: Route, process: ProcessIdentity) -> bool:
        there = self._process_of(route)
        return there is not None and there != process and there.lives_beside(process)


def _has_ended(process: ProcessIdentity) -> bool:
    """Whether it has, and nobody's bytes wait in this machine's kernel: those of the dead are among them."""
    if not process.shares_network() or life_of(process, Deadline(0.0)) is not ProcessLife.ENDED:
        return False
    return not orphans_with_bytes()
