"""Names that must differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

__all__ = ["repeated"]


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once."""
    return sorted(name for name, count in Counter(names).items() if count > 1)
