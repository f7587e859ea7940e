"""What a caller did that the real library answers with an abort, an exit or silent corruption."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "status dropped",
    "engine dropped",
    "would abort",
    "would exit",
    "foreign local descriptor",
    "deregistered in flight",
    "same base twice",
    "in progress at teardown",
]


@dataclass(frozen=True)
class Finding:
    kind: Kind
    text: str


class RealLibraryEndsError(RuntimeError):
    """The real library ends this process, or the peer's, in this call."""


findings: list[Finding] = []


def report(kind: Kind, text: str) -> None:
    findings.append(Finding(kind, text))
    sys.stderr.write(f"mori double: {kind}: {text}\n")


def ends(kind: Literal["would abort", "would exit"], text: str) -> RealLibraryEndsError:
    """Report, and return the error to raise where the real call never returns."""
    report(kind, text)
    return RealLibraryEndsError(text)
