"""The one place where errors end: nothing of ours may reach the engine while it serves.

An exception in a connector ends vLLM's engine, and with it every request. What may fail at the start raises.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from pdcore import PDCoreError

__all__ = ["contained", "log", "one_line"]

log = logging.getLogger("pdcore.vllm")

Given = ParamSpec("Given")
Result = TypeVar("Result")


def contained(otherwise: Callable[[], Any]) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Return a decorator: what the function raises is logged, and it returns ``otherwise()``."""

    def wrap(function: Callable[Given, Result]) -> Callable[Given, Result]:
        @functools.wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            try:
                return function(*args, **kwargs)
            except Exception:
                log.exception("%s failed; the engine goes on without it", function.__qualname__)
                result: Result = otherwise()
                return result

        return call

    return wrap


def one_line(error: BaseException) -> str:
    """Return an error as one line: in a log, or in an answer."""
    if isinstance(error, PDCoreError):
        parts = (" ".join(part.split()) for part in (error.happened, error.there_is, error.to_do))
        return "; ".join(part for part in parts if part)
    return repr(error)
