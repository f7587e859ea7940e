"""A call that must end: made in a thread, so that an engine that hangs fails its test and not the suite."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["HungError", "bounded"]

T = TypeVar("T")


class HungError(AssertionError):
    """A call did not end in time; the thread that made it is still in it."""


class _BoundedCall(Generic[T]):
    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self.results: list[T] = []
        self.error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self.results.append(self._call())
        except BaseException as error:
            self.error = error


def bounded(call: Callable[[], T], seconds: float, what: str) -> T:
    """Return what a call returns or raise what it raises, within so many seconds.

    Raises:
        HungError: the call had not ended by then.
        AssertionError: it raised what is no Exception, and would have ended the process of a user.
    """
    made = _BoundedCall(call)
    thread = threading.Thread(target=made, name="pdcore-testing-bounded", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise HungError(f"{what} had not ended after {seconds:g} s")
    if made.error is not None and not isinstance(made.error, Exception):
        raise AssertionError(f"{what} raised {made.error!r}") from made.error
    if made.error is not None:
        raise made.error
    return made.results[0]
