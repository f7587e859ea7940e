"""Ending the rooms that missed their deadline."""

from __future__ import annotations

from collections.abc import Iterable

from pdcore.managers.chores import Chores
from pdcore.rooms.status import Room

__all__ = ["end_overdue"]


def end_overdue(chores: Chores, overdue: Iterable[Room]) -> None:
    """End rooms that missed their deadline, each for itself; one that nobody holds yet has its turn later."""
    for record in overdue:
        if record.miss is not None:
            chores.do(f"ending room {record.room}", record.miss)
