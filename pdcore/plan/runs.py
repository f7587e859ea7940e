"""Runs: neighbouring items that are neighbours on both sides, so that one entry copies them."""

from __future__ import annotations

import attrs
import numpy as np

from pdcore.plan.indices import IndexArray

__all__ = ["Runs", "merge_runs", "spread"]

_FIRST, _ONE = np.zeros(1, np.int64), np.ones(1, np.int64)


@attrs.frozen(eq=False)
class Runs:
    """``R`` runs: first local and remote item and the number of items of each, int64, shape (R,)."""

    local: IndexArray
    remote: IndexArray
    counts: IndexArray


def merge_runs(local: IndexArray, remote: IndexArray) -> Runs:
    """Merge the pairs ``local[i] -> remote[i]`` of two equally long lists into runs, in their order."""
    n = len(local)
    if n <= 1:
        return Runs(local, remote, _ONE[:n])
    broken = (local[1:] - local[:-1] != 1) | (remote[1:] - remote[:-1] != 1)
    first = np.concatenate((_FIRST, np.flatnonzero(broken) + 1))
    counts = np.empty_like(first)
    np.subtract(first[1:], first[:-1], out=counts[:-1])
    counts[-1] = n - first[-1]
    return Runs(local[first], remote[first], counts)


def spread(first: IndexArray, counts: IndexArray) -> IndexArray:
    """Return the items of runs, one by one: ``first[i]`` and the ``counts[i] - 1`` behind it, in order.

    No count is zero. Shape (sum of counts,), int64.
    """
    total = int(counts.sum())
    if total == len(counts):
        return first
    begun = counts.cumsum() - counts
    return (first - begun).repeat(counts) + np.arange(total)
