"""Auxiliary data: one row per request, typed by an :class:`~pdcore.layout.AuxSchema`.

Every row begins with the room that it belongs to, so that a slot which was reused meanwhile is
noticed by the reader, and the value of one request can never pass for another's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pdcore.errors import FailureCode, KVTransferError, LayoutError, RoomError, WireError
from pdcore.layout import AuxSchema
from pdcore.model import RoomId
from pdcore.regions import Region

__all__ = ["AUX_REGION", "AuxDataCodec", "MetadataBuffers"]

AUX_REGION = "aux"
EMPTY = -1
"""The room of a slot that holds nobody's data."""


class MetadataBuffers:
    """``slots`` aux rows in host memory, shape ``(slots, schema.row_len)`` uint8.

    Callers hand out slots; a slot belongs to one request at a time. Rows of different slots may
    be read and written from different threads.
    """

    def __init__(self, schema: AuxSchema, slots: int) -> None:
        if slots < 1:
            raise LayoutError("there are no aux slots", f"slots={slots}", "use at least one slot")
        self.schema = schema
        self.slots = slots
        self.rows: npt.NDArray[np.uint8] = np.zeros((slots, schema.row_len), np.uint8)
        self._rooms = self.rows[:, :8].view(np.int64)[:, 0]
        self._rooms[:] = EMPTY
        offsets = schema.offsets()
        self._views: dict[str, npt.NDArray[np.generic]] = {
            f.name: self.rows[:, offsets[f.name] : offsets[f.name] + f.nbytes]
            .view(f.dtype)
            .reshape(slots, *f.shape)
            for f in schema.fields
        }

    @property
    def region(self) -> Region:
        """The engine region of all rows."""
        return Region.of(AUX_REGION, self.rows)

    def set(self, slot: int, room: RoomId, values: Mapping[str, npt.ArrayLike]) -> None:
        """Write fields of a slot and give it to ``room``.

        Fields that are not named keep what this room set before, and are zero otherwise: nothing of
        another room stays. All or none: a value that does not fit changes nothing.

        Raises:
            RoomError: the slot or a field does not exist, or a value does not fit its field.
        """
        self._check(slot)
        fitting = {name: self._fitting(name, value) for name, value in values.items()}
        if self._rooms[slot] != room:
            self.rows[slot] = 0
        for name, array in fitting.items():
            self._views[name][slot] = array
        self._rooms[slot] = room

    def get(self, slot: int, room: RoomId) -> dict[str, npt.NDArray[np.generic]]:
        """Return copies of all fields of a slot.

        Raises:
            KVTransferError: code AUX, the slot holds another room's data.
        """
        self.check_room(slot, room)
        return {name: view[slot].copy() for name, view in self._views.items()}

    def empty(self, slot: int) -> None:
        """Mark a slot as holding nobody's data, before a row for it may arrive."""
        self._check(slot)
        self._rooms[slot] = EMPTY

    def check_room(self, slot: int, room: RoomId) -> None:
        """Check that the slot holds this room's data.

        Raises:
            KVTransferError: code AUX, it holds another room's, or nobody's.
        """
        self._check(slot)
        found = int(self._rooms[slot])
        if found != room:
            holder = "nobody's data" if found == EMPTY else f"the data of room {found}"
            raise KVTransferError(
                FailureCode.AUX,
                f"aux slot {slot} does not hold the data of room {room}",
                f"it holds {holder}",
                "set() the aux fields for this room before the last send(), and don't share slots",
            )

    def _fitting(self, name: str, value: npt.ArrayLike) -> npt.NDArray[np.generic]:
        view = self._views.get(name)
        if view is None:
            raise RoomError(
                f"there is no aux field {name!r}",
                f"fields: {', '.join(self._views) or 'none'}",
                "name a field of the schema",
            )
        array = np.asarray(value)
        if array.shape != view.shape[1:] or not _fits(array, view.dtype):
            raise RoomError(
                f"a value does not fit the aux field {name!r}",
                f"{array.dtype}{array.shape}, the field is {view.dtype}{view.shape[1:]}",
                "hand in a value of the field's shape, kind and range",
            )
        return array

    def _check(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise RoomError(
                f"aux slot {slot} does not exist", f"slots 0 to {self.slots - 1}", "use a slot in range"
            )


def _fits(array: npt.NDArray[np.generic], field: np.dtype[np.generic]) -> bool:
    if array.dtype.kind in "iu" and field.kind in "iu" and array.size:
        limits = np.iinfo(field.name)
        return limits.min <= int(array.min()) and int(array.max()) <= limits.max
    return np.can_cast(array.dtype, field, "same_kind")


class AuxDataCodec:
    """Rows to bytes and back, for aux over TCP."""

    def __init__(self, buffers: MetadataBuffers) -> None:
        self._buffers = buffers

    def encode(self, slot: int) -> bytes:
        """Return the bytes of a slot's row, room included."""
        return bytes(self._buffers.rows[slot].data)

    def decode(self, slot: int, row: bytes) -> None:
        """Write a received row into a slot.

        Raises:
            WireError: the row is not of this schema's length; the slot is unchanged.
        """
        expected = self._buffers.schema.row_len
        if len(row) != expected:
            raise WireError(
                "an aux row has the wrong length",
                f"{len(row)} bytes, the schema has {expected}",
                "use the same AuxSchema on both sides",
            )
        self._buffers.rows[slot] = np.frombuffer(row, np.uint8)
