"""Runs: neighbouring items that are neighbours on both sides, so that one entry copies them."""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.errors import PlanError

__all__ = ["IndexArray", "Runs", "index_array", "merge_runs"]

IndexArray = npt.NDArray[np.int64]
"""Page, slot or item indices, one-dimensional int64."""

_FIRST = np.zeros(1, np.int64)


def index_array(values: npt.ArrayLike, what: str) -> IndexArray:
    """Return a private int64 copy of item indices.

    Raises:
        PlanError: the values are not a one-dimensional list of integers.
    """
    array = np.asarray(values)
    if array.ndim != 1 or not (array.dtype.kind in "iu" or array.size == 0):
        raise PlanError(
            f"{what} are not a list of indices",
            f"an array of shape {array.shape} and dtype {array.dtype}",
            "hand in a one-dimensional sequence of integers",
        )
    return array.astype(np.int64)


@attrs.frozen(eq=False)
class Runs:
    """``R`` runs: first local and remote item and the number of items of each, int64, shape (R,)."""

    local: IndexArray
    remote: IndexArray
    counts: IndexArray


def merge_runs(local: IndexArray, remote: IndexArray) -> Runs:
    """Merge the pairs ``local[i] -> remote[i]`` into runs, keeping their order.

    Raises:
        PlanError: the two lists differ in length.
    """
    n = len(local)
    if n != len(remote):
        raise PlanError(
            "the index lists of the two sides differ in length",
            f"{n} local and {len(remote)} remote indices",
            "hand in one remote index for every local one",
        )
    if n <= 1:
        return Runs(local, remote, np.ones(n, np.int64))
    broken = (local[1:] - local[:-1] != 1) | (remote[1:] - remote[:-1] != 1)
    first = np.concatenate((_FIRST, np.flatnonzero(broken) + 1))
    counts = np.empty_like(first)
    np.subtract(first[1:], first[:-1], out=counts[:-1])
    counts[-1] = n - first[-1]
    return Runs(local[first], remote[first], counts)
