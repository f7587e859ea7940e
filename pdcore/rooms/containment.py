"""Where errors end that may not reach the engine above: an exception in its process ends all its requests."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

from pdcore.errors import PDCoreError
from pdcore.rooms.handle import RoomHandle
from pdcore.wire.complaints import COMPLAINT_SECONDS, Complaints

__all__ = ["contained", "room_fails"]

Given = ParamSpec("Given")
Result = TypeVar("Result")

_complaints = Complaints(logging.getLogger("pdcore.containment"), COMPLAINT_SECONDS)


def contained(otherwise: Callable[[], Any]) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Return a decorator for what an engine calls: where it raises, that is logged (once in a while), and it
    returns ``otherwise()``.
    """

    def wrap(function: Callable[Given, Result]) -> Callable[Given, Result]:
        what = function.__qualname__

        @functools.wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                _complaints.about(what, f"{what} failed; the engine goes on without it", error)
                return cast("Result", otherwise())

        return call

    return wrap


class _Failing:
    """Ends a room with what a block raises."""

    def __init__(self, handle: RoomHandle) -> None:
        self._handle = handle

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False

        def again() -> None:
            raise error

        handle = self._handle
        try:
            if handle.stillborn:
                again()
            handle.attempt(again)
        except PDCoreError:  # of a room that was FAILED from birth
            pass
        except Exception as defect:
            what = f"a defect ended room {handle.room}"
            _complaints.about(type(defect).__name__, what, defect)
        return True


def room_fails(handle: RoomHandle) -> _Failing:
    """Return what ends a room on both sides with whatever a block raises, and lets nothing out: ``with`` it.

    What is no error of pdcore is a defect, and logged (once in a while). A room that has ended stays so.
    """
    return _Failing(handle)
