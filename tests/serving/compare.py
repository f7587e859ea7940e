"""Answers beside those of a single engine: how many are equal, and where the others part."""

from __future__ import annotations

import collections
import re
from collections.abc import Sequence

import attrs

from .client import Answer, Prompt

NUMBERS = re.compile(r"0x[0-9a-f]+|[0-9a-f]{8,}|\d+")


def reason(error: str) -> str:
    """An error without what differs from request to request, so that like ones count together."""
    return NUMBERS.sub("#", error)[:300]


@attrs.frozen
class Difference:
    """One answer that is not the wanted one."""

    index: int
    prompt_tokens: int
    at: int | None
    """The first token that differs; None: there is no answer, but ``error``."""
    wanted: tuple[int, ...]
    got: tuple[int, ...]
    error: str | None = None

    def __str__(self) -> str:
        where = f"prompt {self.index} ({self.prompt_tokens} tokens)"
        if self.error is not None:
            return f"{where}: {self.error}"
        return f"{where}: differs from token {self.at} on: wanted {list(self.wanted)}, got {list(self.got)}"


@attrs.frozen
class Comparison:
    """What became of a set of prompts."""

    count: int
    different: tuple[Difference, ...]
    """Answered, with other tokens."""
    failed: tuple[Difference, ...]

    @property
    def equal(self) -> int:
        return self.count - len(self.different) - len(self.failed)

    @property
    def reasons(self) -> dict[str, int]:
        """How often each error came."""
        return dict(collections.Counter(reason(f.error or "") for f in self.failed))

    def __str__(self) -> str:
        worst = [str(d) for d in (*self.different, *self.failed)[:5]]
        return "\n".join([f"{self.equal} of {self.count} are equal", *worst])


def _parting(wanted: tuple[int, ...], got: tuple[int, ...]) -> int:
    pairs = enumerate(zip(wanted, got, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(wanted), len(got)))


def compare(prompts: Sequence[Prompt], wanted: Sequence[Answer], got: Sequence[Answer]) -> Comparison:
    """Compare token by token. A wanted answer that failed is the caller's mistake, and raises."""
    different, failed = [], []
    for index, (prompt, right, answer) in enumerate(zip(prompts, wanted, got, strict=True)):
        if right.error is not None:
            raise ValueError(f"there is nothing to compare prompt {index} with: {right.error}")
        if answer.error is not None:
            failed.append(
                Difference(index, len(prompt.tokens), None, right.tokens, answer.tokens, answer.error)
            )
        elif answer.tokens != right.tokens:
            at = _parting(right.tokens, answer.tokens)
            different.append(Difference(index, len(prompt.tokens), at, right.tokens, answer.tokens))
    return Comparison(len(prompts), tuple(different), tuple(failed))


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of all does not exceed; 0.0 of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def table(rows: Sequence[Sequence[object]], head: Sequence[str]) -> str:
    """Plain columns, numbers to the right."""
    cells = [[f"{c:.1f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(len(r[i]) for r in (*cells, list(head))) for i in range(len(head))]
    lines = [list(head), *cells]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
