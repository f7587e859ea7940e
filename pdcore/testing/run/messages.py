"""What the process that runs the tests is started with, and what it tells."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from pdcore.children import Fatal

__all__ = ["BeganTest", "Collected", "EndedTest", "Errand", "SuiteOver", "Told", "decode_told"]


class Errand(msgspec.Struct, frozen=True):
    """Which backend to test, with what of the suite. The tests in ``done`` have ended elsewhere."""

    backend: str
    options: dict[str, Any]
    patience: float
    expression: str
    done: list[str]


class Collected(msgspec.Struct, frozen=True, tag=True):
    """How many tests there are, and which (group, test) the expression chose."""

    suite: int
    planned: list[tuple[str, str]]


class BeganTest(msgspec.Struct, frozen=True, tag=True):
    """A test began."""

    test: str


class EndedTest(msgspec.Struct, frozen=True, tag=True):
    """A test ended. ``stuck``: a call of the engine has not returned, in a thread of that process."""

    test: str
    ending: str
    reason: str
    stuck: bool


class SuiteOver(msgspec.Struct, frozen=True, tag=True):
    """pytest returned this status, and said this where it went wrong."""

    status: int
    said: str


Told: TypeAlias = Collected | BeganTest | EndedTest | SuiteOver | Fatal

decode_told = msgspec.json.Decoder[Told](Told).decode
"""The event on a line."""
