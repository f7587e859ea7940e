"""The aux data of all slots, whatever memory it lies in: read and written as rows of its schema."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pdcore.layout.aux_form import AuxForm, runs_between
from pdcore.layout.aux_schema import AuxSchema
from pdcore.memory.aux_rows import Bytes, Rows

__all__ = ["EMPTY", "Cells"]

EMPTY = -1
"""The room of a slot that holds nobody's data."""


class Cells:
    """Aux data in the regions of a form. Slots may be used from different threads, each from one."""

    def __init__(self, schema: AuxSchema, form: AuxForm, parts: Sequence[Rows]) -> None:
        self._row_len = schema.row_len
        self._parts = tuple(parts)
        self._runs = runs_between(form, AuxForm.rows(schema))
        room = form.cells[0]
        self._rooms = self._parts[room.region].numbers(room.offset)

    def read(self, slot: int) -> Bytes:
        """Return a copy of a slot's data, as a row of the schema."""
        row = np.zeros(self._row_len, np.uint8)
        for run in self._runs:
            part = self._parts[run.local_region]
            row[run.remote_offset : run.remote_offset + run.length] = part.read(
                slot, run.local_offset, run.length
            )
        return row

    def write(self, slot: int, row: Bytes) -> None:
        """Replace a slot's data."""
        for run in self._runs:
            data = row[run.remote_offset : run.remote_offset + run.length]
            self._parts[run.local_region].write(slot, data, run.local_offset)

    def room(self, slot: int) -> int:
        """Return whose data a slot holds."""
        return int(self._rooms[slot])

    def give(self, slot: int, room: int) -> None:
        """Say whose data a slot holds."""
        self._rooms[slot] = room
