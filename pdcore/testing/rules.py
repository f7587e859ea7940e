"""What a conformance test proves, in words: told with each failure, together with what usually causes it."""

from __future__ import annotations

import traceback
from contextlib import ContextDecorator
from types import TracebackType

import attrs
import pytest

__all__ = ["Rule", "RuleBrokenError"]


class RuleBrokenError(AssertionError):
    """An engine does not keep a rule."""


@attrs.frozen
class Rule(ContextDecorator):
    """A rule of the engine contract and the usual cause of its being broken; decorates a test.

    Whatever goes wrong below it fails the test as a :class:`RuleBrokenError` that tells both.
    """

    says: str
    cause: str

    def __enter__(self) -> Rule:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, RuleBrokenError):
            return
        if isinstance(error, Exception | pytest.fail.Exception):
            text = f"rule: {self.says}\nusual cause: {self.cause}\n{_describe(error)}"
            raise RuleBrokenError(text) from error


def _describe(error: BaseException) -> str:
    """Say what happened; an assertion without words is told by its source."""
    said = str(error).split("\nassert ")[0]  # what pytest adds to words that say it already
    if not said:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{frame.line} ({frame.filename.rpartition('/')[2]}, line {frame.lineno})"
    told = isinstance(error, AssertionError | pytest.fail.Exception)
    return said if told else f"{type(error).__name__}: {said}"
