"""What the process that runs the tests is told, and what it tells: JSON lines, typed by msgspec."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Begun", "Collected", "Ended", "Errand", "Over", "Told"]


class Errand(msgspec.Struct):
    """Which backend to test, with what of the suite. The tests in ``done`` have ended elsewhere."""

    backend: str
    options: dict[str, Any]
    patience: float
    expression: str
    done: list[str]


class Collected(msgspec.Struct, tag=True):
    """How many tests there are, and which (group, test) the expression chose."""

    suite: int
    planned: list[tuple[str, str]]


class Begun(msgspec.Struct, tag=True):
    """A test began."""

    test: str


class Ended(msgspec.Struct, tag=True):
    """A test ended. ``stuck``: a call of the engine has not returned, in a thread of that process."""

    test: str
    ending: str
    reason: str
    stuck: bool


class Over(msgspec.Struct, tag=True):
    """pytest returned this status, and said this where it went wrong."""

    status: int
    said: str


Told = Collected | Begun | Ended | Over
