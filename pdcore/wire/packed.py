"""What two ranks say of bytes that go packed, through slots of a staging ring."""

from __future__ import annotations

import attrs

from pdcore.model import Generation, RoomId
from pdcore.plan import IndexArray

__all__ = ["Packed", "Quiet", "Unpacked"]


@attrs.frozen(eq=False)
class Packed:
    """A slot of the pair's ring holds bytes of a room, one entry behind the other.

    Of decode's region ``regions[p]`` (int64, shape (P,)), the entries ``starts[p]:starts[p + 1]`` are the
    ``lengths`` bytes at ``offsets`` (int64, shape (N,)). ``number``: of this use of the slot; the sender uses
    no number twice.
    """

    room: RoomId
    generation: Generation
    slot: int
    number: int
    regions: IndexArray
    starts: IndexArray
    offsets: IndexArray
    lengths: IndexArray


@attrs.frozen
class Unpacked:
    """Decode has taken use ``number`` of a slot, or has no use for it: the slot may be written to again."""

    slot: int
    number: int


@attrs.frozen
class Quiet:
    """No byte of prefill can land any more in a staging ring that an earlier pairing had."""

    ring: int
