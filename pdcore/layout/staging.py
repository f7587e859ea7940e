"""Rings of slots beside the pools, through which packed bytes travel."""

from __future__ import annotations

import attrs
from attrs.validators import ge

__all__ = ["RING", "StagingLayout", "packs"]

RING = "staging.ring"
"""The name of the region; what stands before the dot no buffer and no component of state has."""


@attrs.frozen
class StagingLayout:
    """``rings`` rings of ``slots`` slots of ``slot_bytes`` bytes, one behind the other in one region.

    A pair has a ring on either side, and a slot has the same number in both. ``always``: whatever this rank
    sends or receives goes through slots, so that no peer ever writes to its pages.
    """

    rings: int = attrs.field(validator=ge(1))
    slots: int = attrs.field(validator=ge(1))
    slot_bytes: int = attrs.field(validator=ge(4096))
    always: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the region."""
        return self.rings * self.slots * self.slot_bytes

    def offset(self, ring: int, slot: int) -> int:
        """Return where a slot begins in the region."""
        return (ring * self.slots + slot) * self.slot_bytes


def packs(one: StagingLayout | None, other: StagingLayout | None) -> bool:
    """Return whether two ranks with these slots exchange bytes in no other way."""
    return any(staging is not None and staging.always for staging in (one, other))
