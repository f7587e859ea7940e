"""A machine's whole state as plain values: to be compared with another's, and to be read."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from functools import partial
from typing import Any

import attrs
import numpy as np

from pdcore.errors import KVTransferError
from pdcore.protocol.machine import Machine
from pdcore.protocol.peer import PrefillGroup, RemoteRank
from pdcore.protocol.room import Room
from pdcore.protocol.send.lives import Life

__all__ = ["Picture", "differences", "picture"]

Plain = None | bool | int | float | str | list[Any] | dict[str, Any]
Picture = dict[str, Plain]

NOT_STATE = frozenset({"_fit", "_handlers", "_listeners", "todo"})
"""What a machine was made of, and what it wanted last."""


def picture(machine: Machine) -> Picture:
    """Return the state: each part of the machine, then each room, peer and group that any of them knows."""
    return _Painter().paint(machine)


def differences(one: Plain, other: Plain, where: str = "") -> Iterator[str]:
    """Yield where two pictures differ, and how."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in (*one, *(key for key in other if key not in one)):
            there = f"{where}.{key}" if where else key
            if key in one and key in other:
                yield from differences(one[key], other[key], there)
            else:
                yield f"{there}: only in the {'first' if key in one else 'second'}"
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for n, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from differences(left, right, f"{where}[{n}]")
    elif one != other:
        yield f"{where}: {one!r} and {other!r}"


class _Painter:
    """Rooms, peers and groups know each other: where one is met it is named, and painted once at the end."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._alike: Counter[str] = Counter()
        self._known: deque[Room | RemoteRank | PrefillGroup] = deque()
        self._seen: set[int] = set()

    def paint(self, machine: Machine) -> Picture:
        found = self._fields(machine)
        while self._known:
            one = self._known.popleft()
            found[self._names[id(one)]] = self._fields(one)
        return found

    def _name(self, one: Room | RemoteRank | PrefillGroup) -> str:
        name = self._names.get(id(one))
        if name is None:
            if isinstance(one, Room):
                what = "room" if type(one) is not Life else "what is remembered of room"
                plain = f"{what} {one.room} of generation {one.generation}"
            else:
                plain = str(one) if isinstance(one, RemoteRank) else f"group {one.key}"
            self._alike[plain] += 1
            times = self._alike[plain]
            name = self._names[id(one)] = plain if times == 1 else f"{plain}, another ({times})"
            self._known.append(one)
        return name

    def _fields(self, value: object) -> Picture:
        kind = type(value)
        names = [field.name for field in attrs.fields(kind)] if attrs.has(kind) else list(vars(value))
        return {name: self._of(getattr(value, name)) for name in names if name not in NOT_STATE}

    def _of(self, value: object) -> Plain:
        if isinstance(value, Enum):
            return value.name
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, bytes):
            return value.decode("ascii", "backslashreplace")
        if isinstance(value, Room | RemoteRank | PrefillGroup):
            return self._name(value)
        if isinstance(value, KVTransferError):
            return [value.code.name, value.happened, value.there_is, value.to_do]
        if isinstance(value, partial):
            return [getattr(value.func, "__qualname__", ""), *map(self._of, value.args)]
        if callable(value):
            return getattr(value, "__qualname__", type(value).__name__)
        return self._of_many(value)

    def _of_many(self, value: object) -> Plain:
        if isinstance(value, np.ndarray):
            return [int(number) for number in value]
        if isinstance(value, Mapping):
            return {str(self._of(key)): self._of(one) for key, one in value.items()}
        if isinstance(value, set | frozenset):
            return sorted(map(self._of, value), key=str)
        if isinstance(value, Collection):
            return [self._of(one) for one in value]
        if id(value) in self._seen and not attrs.has(type(value)):
            return f"the {type(value).__name__}"
        self._seen.add(id(value))
        return dict(self._fields(value))
