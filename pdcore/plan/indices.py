"""Lists of page, slot or item indices, as callers hand them in."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pdcore.checks.scalars import shown
from pdcore.errors import PlanError

__all__ = ["IndexArray", "check_lists", "index_array"]

IndexArray = npt.NDArray[np.int64]
"""Page, slot or item indices, one-dimensional int64."""

MOST = 2**63 - 1


def index_array(values: npt.ArrayLike, what: str) -> IndexArray:
    """Return a private int64 copy of item indices: of a sequence, a numpy array, or a tensor in host memory.

    Raises:
        PlanError: the values are not a one-dimensional list of integers.
    """
    try:
        array = np.asarray(values)
    except Exception as error:  # lists of lists, tensors on a device, whatever a third party's class raises
        reason = (str(error).splitlines() or [""])[0]
        raise _no_list(what, f"{shown(values)}: {type(error).__name__}: {reason}") from error
    if array.ndim != 1 or not (array.dtype.kind in "iu" or array.size == 0):
        there = f"an array of shape {array.shape} and dtype {array.dtype}"
        raise _no_list(what, there if isinstance(values, np.ndarray) else f"{shown(values)}: {there}")
    if array.dtype == np.uint64 and array.size and int(array.max()) > MOST:
        raise _no_list(what, f"{int(array.max())} among them, and indices are at most {MOST}")
    return array.astype(np.int64)


def _no_list(what: str, there_is: str) -> PlanError:
    to_do = "hand in a one-dimensional sequence of integers, in host memory"
    return PlanError(f"{what} are not a list of indices", there_is, to_do)


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
        if np.count_nonzero(indices.view(np.uint64) >= np.uint64(limit)):
            bad = indices[(indices < 0) | (indices >= limit)]
            raise PlanError(
                f"{what} indices leave the {side} pool",
                f"{len(bad)} of {len(indices)}, the first is {int(bad[0])}; the pool holds {limit}",
                f"use indices from 0 to {limit - 1}",
            )
