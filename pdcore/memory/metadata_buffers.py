"""Auxiliary data: some values per request, typed by an :class:`~pdcore.layout.kv.AuxSchema`.

Every slot says the room that it belongs to, so that one which was reused meanwhile is noticed by the
reader, and the value of one request can never pass for another's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import numpy.typing as npt

from pdcore.arguments import instance, room_id
from pdcore.checks.fields import as_integer
from pdcore.checks.scalars import shown, whole
from pdcore.contract.regions import Region
from pdcore.errors import FailureCode, KVTransferError, LayoutError, RoomError, WireError
from pdcore.layout.aux_form import AUX_REGION, AuxForm
from pdcore.layout.aux_schema import AUX_ALIGNMENT, AuxSchema
from pdcore.memory.aux_cells import EMPTY, Cells
from pdcore.memory.aux_fields import field_regions, fields_of
from pdcore.memory.aux_rows import Rows, number_bytes, number_of, rows_in, rows_of, rows_on
from pdcore.model import CPU, Device, RoomId

__all__ = ["AuxDataCodec", "MetadataBuffers"]


class MetadataBuffers:
    """``slots`` slots of aux data: in new rows on ``device``, or in ``memory`` of the caller's.

    ``memory`` is a numpy array or torch tensor of rows, shape ``(slots, schema.row_len)``, uint8; or a
    mapping with one per field, shape ``(slots, *field.shape)``, all on one device (:meth:`of_fields`).
    Callers hand out slots; a slot belongs to one request at a time. Data of different slots may
    be read and written from different threads. What lies on a device is copied to and fro.
    ``regions`` are the engine's, as ``form`` says. Two sides pair if their schemas are equal, whatever
    their forms.

    Raises:
        LayoutError: no slots, or the data cannot lie there.
    """

    def __init__(
        self, schema: AuxSchema, slots: int, *, device: Device = CPU, memory: object | None = None
    ) -> None:
        slots = as_integer("the number of aux slots", slots)
        if slots < 1:
            raise LayoutError("there are no aux slots", f"slots={slots}", "use at least one slot")
        instance("the schema of aux rows", schema, AuxSchema, "hand in AuxSchema((AuxField(...), ...))")
        instance("the device of aux rows", device, Device, "hand in pdcore.CPU or Device(kind, index)")
        self.schema = schema
        self.slots = slots
        self.form = AuxForm.rows(schema)
        self.regions: tuple[Region, ...]
        if isinstance(memory, Mapping):
            fields = field_regions(schema, slots, memory)
            strides = {f.name: r.item_stride for f, r in zip(schema.fields, fields, strict=True)}
            self.form = AuxForm.apart(schema, strides)
            rooms = rows_on(fields[0].device if fields else device, slots, AUX_ALIGNMENT)
            parts: list[Rows] = [rooms, *(rows_of(region, slots) for region in fields)]
            self.regions = (rooms.region(AUX_REGION), *fields)
        else:
            row_len = schema.row_len
            rows = rows_on(device, slots, row_len) if memory is None else rows_in(memory, slots, row_len)
            parts, self.regions = [rows], (rows.region(AUX_REGION),)
        self.cells = Cells(schema, self.form, parts)
        offsets = schema.offsets()
        self._fields = {f.name: (offsets[f.name], np.dtype(f.dtype), f.shape) for f in schema.fields}
        for slot in range(slots):
            self.empty(slot)

    @classmethod
    def of_fields(cls, fields: Mapping[str, object]) -> MetadataBuffers:
        """Return the buffers of memory that the caller has: an array or tensor of shape ``(slots, ...)``
        per field, which is read and written where it is, on whatever device.

        Their order, dtypes and shapes make the schema; a dtype that numpy lacks is described by its bits
        (bfloat16: uint16). The caller may write its own memory, and then :meth:`give` the slot to a room.

        Raises:
            LayoutError: they have not as many slots each, lie on different devices, or cannot be fields.
            RegistrationError: one is no array or tensor, read-only, or not contiguous from its second
                dimension on.
        """
        schema, slots = fields_of(fields)
        return cls(schema, slots, memory=fields)

    @property
    def device(self) -> Device:
        """Where the data lies."""
        return self.regions[0].device

    def give(self, slot: int, room: RoomId) -> None:
        """Say that a slot holds the data of a room, which the caller has written to its own memory.

        Raises:
            RoomError: the slot does not exist, or that can be no room.
        """
        self.cells.give(self.slot(slot), room_id(room))

    def set(self, slot: int, room: RoomId, values: Mapping[str, npt.ArrayLike]) -> None:
        """Write fields of a slot and give it to ``room``.

        Fields that are not named keep what this room set before, and are zero otherwise: nothing of
        another room stays. All or none: a value that does not fit changes nothing.

        Raises:
            RoomError: the slot or a field does not exist, or a value does not fit its field.
        """
        slot, room = self.slot(slot), room_id(room)
        if not issubclass(type(values), Mapping):  # whatever the annotation says
            to_do = "hand in a mapping of field names to values"
            raise RoomError(f"the aux values of room {room} are no mapping", shown(values), to_do)
        row = self.cells.read(slot)
        if number_of(row) != room:  # a row begins with whose it is
            row[:] = 0
        for name, value in values.items():
            array = self._fitting(name, value)
            offset = self._fields[name][0]
            row[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        row[:8] = number_bytes(room)
        self.cells.write(slot, row)

    def get(self, slot: int, room: RoomId) -> dict[str, npt.NDArray[np.generic]]:
        """Return copies of all fields of a slot.

        Raises:
            KVTransferError: code AUX, the slot holds another room's data.
        """
        slot, room = self.slot(slot), room_id(room)
        row = self.cells.read(slot)
        _check_room(slot, room, number_of(row))
        return {
            name: row[offset : offset + dtype.itemsize * math.prod(shape)].view(dtype).reshape(shape)
            for name, (offset, dtype, shape) in self._fields.items()
        }

    def empty(self, slot: int) -> None:
        """Mark a slot as holding nobody's data, before a row for it may arrive."""
        self.cells.give(self.slot(slot), EMPTY)

    def check_room(self, slot: int, room: RoomId) -> None:
        """Check that the slot holds this room's data.

        Raises:
            KVTransferError: code AUX, it holds another room's, or nobody's.
        """
        _check_room(slot, room, self.cells.room(self.slot(slot)))

    def _fitting(self, name: str, value: npt.ArrayLike) -> npt.NDArray[np.generic]:
        if name not in self._fields:
            raise RoomError(
                f"there is no aux field {name!r}",
                f"fields: {', '.join(self._fields) or 'none'}",
                "name a field of the schema",
            )
        _, dtype, shape = self._fields[name]
        try:
            array = np.asarray(value)
        except Exception as error:  # ragged lists, tensors on a device
            there_is = f"{shown(value)}: {type(error).__name__}: {error}"
            to_do = "hand in a value of the field's shape, kind and range, in host memory"
            raise RoomError(f"a value does not fit the aux field {name!r}", there_is, to_do) from error
        if array.shape != shape or not _fits(array, dtype):
            raise RoomError(
                f"a value does not fit the aux field {name!r}",
                f"{array.dtype}{array.shape}, the field is {dtype}{shape}",
                "hand in a value of the field's shape, kind and range",
            )
        return np.ascontiguousarray(array, dtype)

    def slot(self, slot: int) -> int:
        """Return a slot as a plain int; RoomError where there is none of this number."""
        number = whole(slot)
        if number is None or not 0 <= number < self.slots:
            named = shown(slot) if number is None else number
            raise RoomError(
                f"aux slot {named} does not exist", f"slots 0 to {self.slots - 1}", "use a slot in range"
            )
        return number


def _fits(array: npt.NDArray[np.generic], field: np.dtype[np.generic]) -> bool:
    if array.dtype == field:
        return True
    if array.dtype.kind in "iu" and field.kind in "iu" and array.size:
        least, most = _limits(field)
        return least <= int(array.min()) and int(array.max()) <= most
    return np.can_cast(array.dtype, field, "same_kind")


@cache  # numpy's own takes longer than all else that a row needs
def _limits(field: np.dtype[np.generic]) -> tuple[int, int]:
    limits = np.iinfo(field.name)
    return int(limits.min), int(limits.max)


def _check_room(slot: int, room: RoomId, found: int) -> None:
    if found != room:
        holder = "nobody's data" if found == EMPTY else f"the data of room {found}"
        raise KVTransferError(
            FailureCode.AUX,
            f"aux slot {slot} does not hold the data of room {room}",
            f"it holds {holder}",
            "set() its aux fields, or give() it the slot, before the last send(), and don't share slots",
        )


class AuxDataCodec:
    """Rows to bytes and back, for aux over TCP."""

    def __init__(self, buffers: MetadataBuffers) -> None:
        self._buffers = buffers

    def encode(self, slot: int) -> bytes:
        """Return the bytes of a slot's row, room included; RoomError where there is no such slot."""
        return self._buffers.cells.read(self._buffers.slot(slot)).tobytes()

    def decode(self, slot: int, row: bytes) -> None:
        """Write a received row into a slot.

        Raises:
            WireError: the row is not of this schema's length; the slot is unchanged.
            RoomError: there is no such slot.
        """
        expected = self._buffers.schema.row_len
        if len(row) != expected:
            raise WireError(
                "an aux row has the wrong length",
                f"{len(row)} bytes, the schema has {expected}",
                "use the same AuxSchema on both sides",
            )
        self._buffers.cells.write(self._buffers.slot(slot), np.frombuffer(row, np.uint8).copy())
