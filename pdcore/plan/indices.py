"""Lists of page, slot or item indices, as callers hand them in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pdcore.errors import PlanError

__all__ = ["IndexArray", "check_lists", "index_array"]

IndexArray = npt.NDArray[np.int64]
"""Page, slot or item indices, one-dimensional int64."""


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


def check_lists(
    what: str, local: IndexArray, remote: IndexArray, local_items: int, remote_items: int
) -> None:
    """Check that two lists of ``what`` belong together and stay inside both pools.

    Raises:
        PlanError: they differ in length, or an index is outside its side's pool.
    """
    if len(local) != len(remote):
        raise PlanError(
            f"{what} indices of the two sides differ in number",
            f"{len(local)} local and {len(remote)} remote indices",
            "hand in one remote index for every local one",
        )
    for side, limit, indices in (("local", local_items, local), ("remote", remote_items, remote)):
        # As unsigned, a negative index is huge: one comparison holds both bounds.
        if len(indices) and int(indices.view(np.uint64).max()) >= limit:
            bad = indices[(indices < 0) | (indices >= limit)]
            raise PlanError(
                f"{what} indices leave the {side} pool",
                f"{len(bad)} of {len(indices)}, the first is {int(bad[0])}; the pool holds {limit}",
                f"use indices from 0 to {limit - 1}",
            )
