"""The one place where errors end: nothing of ours may reach the engine while it serves.

An exception in a connector ends vLLM's engine, and with it every request. What may fail at the start raises.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from pdcore import PDCoreError

__all__ = ["contained", "join_log", "log", "one_line"]

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
                return cast("Result", otherwise())

        return call

    return wrap


def one_line(error: BaseException) -> str:
    """Return an error as one line: in a log, or in an answer."""
    parts = str(error).splitlines() if isinstance(error, PDCoreError) else [repr(error)]
    return "; ".join(" ".join(part.split()) for part in parts)


def join_log() -> None:
    """Have pdcore's log lines come out as vLLM's do, unless somebody has seen to them: vLLM configures only
    its own logger."""
    ours, theirs = logging.getLogger("pdcore"), logging.getLogger("vllm")
    if not ours.handlers and theirs.handlers:
        ours.handlers, ours.propagate = list(theirs.handlers), False
        ours.setLevel(ours.level or theirs.getEffectiveLevel())
