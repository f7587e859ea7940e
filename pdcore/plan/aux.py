"""The aux data of one request: one entry per run of fields that are neighbours on both sides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pdcore.contract.regions import OffsetArray, WriteBatch
from pdcore.layout.aux_form import AuxForm, runs_between
from pdcore.plan.indices import IndexArray, check_lists

__all__ = ["AuxCopier"]


class AuxCopier:
    """Plans copies of aux slots between two forms of one schema; made once per pairing.

    Region ``r`` of a form is engine region ``local_regions[r]`` here, or ``remote_regions[r]`` there.
    """

    def __init__(
        self,
        forms: tuple[AuxForm, AuxForm],
        local_regions: Sequence[int],
        remote_regions: Sequence[int],
        local_slots: int,
        remote_slots: int,
    ) -> None:
        runs = runs_between(*forms)
        here, there = ([r.stride for r in form.regions] for form in forms)
        self._slots = local_slots, remote_slots
        self._regions = (
            np.array([local_regions[r.local_region] for r in runs], np.int64),
            np.array([remote_regions[r.remote_region] for r in runs], np.int64),
        )
        self._strides = (
            _column([here[r.local_region] for r in runs]),
            _column([there[r.remote_region] for r in runs]),
        )
        self._offsets = (
            _column([r.local_offset for r in runs]),
            _column([r.remote_offset for r in runs]),
        )
        self._lengths = np.array([r.length for r in runs], np.uint64)
        self._pair_index = np.arange(len(runs) + 1)

    def __call__(self, local: IndexArray, remote: IndexArray) -> WriteBatch:
        """Return the batch that copies slot ``local[i]`` to ``remote[i]``.

        Raises:
            PlanError: the lists differ in length, or a slot is outside its side's buffers.
        """
        check_lists("aux slot", local, remote, *self._slots)
        if len(local) == 0:
            return WriteBatch.empty()
        return WriteBatch(
            *self._regions,
            self._pair_index * len(local),
            (local.view(np.uint64) * self._strides[0] + self._offsets[0]).ravel(),
            (remote.view(np.uint64) * self._strides[1] + self._offsets[1]).ravel(),
            self._lengths.repeat(len(local)),
        )


def _column(values: Sequence[int]) -> OffsetArray:
    return np.array(values, np.uint64).reshape(-1, 1)
