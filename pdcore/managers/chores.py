"""What a control thread does again and again, for many rooms and peers: each for itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from pdcore.wire.complaints import COMPLAINT_SECONDS, Complaints

__all__ = ["Chores"]

T = TypeVar("T")

_log = logging.getLogger("pdcore.manager")


class Chores:
    """Does things one by one on one thread. Whatever one raises is logged, and the next is done."""

    def __init__(self) -> None:
        self._complaints = Complaints(_log, COMPLAINT_SECONDS)

    def do(self, what: str, action: Callable[[], object]) -> Exception | None:
        """Do something; return what it raised."""
        try:
            action()
        # Adapters, hooks, subscribers and clocks of third parties run here.
        except Exception as error:
            self._complaints.about(what, f"{what} failed on the control thread, which goes on", error)
            return error
        return None

    def each(self, what: str, items: Iterable[T], action: Callable[[T], object]) -> None:
        """Do something with each of some items."""
        for item in items:
            self.do(what, partial(action, item))
