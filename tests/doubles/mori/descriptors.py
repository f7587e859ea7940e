"""EngineDesc and MemoryDesc: immutable, unhashable, packed as msgpack arrays of 6 and 15 fields."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from .binding import Int32, Native, Property, UInt64, binding
from .values import MemoryLocationType

S = TypeVar("S")
D = TypeVar("D", bound="Desc")


class EngineFields(msgspec.Struct, array_like=True, frozen=True):
    """The wire form of an EngineDesc, in order."""

    key: str = ""
    node_id: str = ""
    hostname: str = ""
    host: str = ""
    port: int = 0
    pid: int = 0


class MemoryFields(msgspec.Struct, array_like=True, frozen=True):
    """The wire form of a MemoryDesc, in order; the fabric fields are opaque here."""

    engine_key: str = ""
    id: int = 0
    device_id: int = -1
    device_bus_id: str = ""
    data: int = 0
    size: int = 0
    loc: int = 0
    ipc_handle: bytes = bytes(64)
    numa_node: int = -1
    fabric_a: int = 0
    fabric_handle: bytes = bytes(64)
    fabric_b: int = -1
    fabric_c: str = ""
    fabric_d: int = 0
    fabric_e: int = 0


def made(kind: type[D], fields: EngineFields | MemoryFields) -> D:
    """Return a descriptor with these fields; only the library makes one."""
    desc = kind.__new__(kind)
    desc._fields = fields
    for name in fields.__struct_fields__:
        setattr(desc, f"_{name}", getattr(fields, name))
    return desc


def unpacked(packed: bytes, fields: type[S]) -> S:
    try:
        return msgspec.convert(msgspec.msgpack.decode(packed), fields)
    except msgspec.DecodeError as error:
        raise RuntimeError("insufficient bytes" if "truncated" in str(error) else "std::bad_cast") from None


class Desc(Native):
    """What both have in common; ``==`` is without the handles, and there is no hash."""

    _fields: EngineFields | MemoryFields

    @binding
    def pack(self) -> bytes:
        return msgspec.msgpack.encode(self._fields)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Desc) or type(other) is not type(self):
            return NotImplemented
        return self._compared() == other._compared()

    def _compared(self) -> list[object]:
        return [v for k, v in msgspec.structs.asdict(self._fields).items() if "handle" not in k]


class EngineDesc(Desc):
    """A snapshot of an engine."""

    key = Property(str, "", readonly=True)
    node_id = Property(str, "", readonly=True)
    hostname = Property(str, "", readonly=True)
    host = Property(str, "", readonly=True)
    port = Property(Int32, 0, readonly=True)
    pid = Property(Int32, 0, readonly=True)

    def __init__(self) -> None:
        raise TypeError("libmori_pybinds.EngineDesc: No constructor defined!")

    @staticmethod
    @binding
    def unpack(packed: bytes, /) -> EngineDesc:
        return made(EngineDesc, unpacked(packed, EngineFields))


class MemoryDesc(Desc):
    """A region of one engine: ``size`` bytes at ``data``."""

    engine_key = Property(str, "", readonly=True)
    id = Property(Int32, 0, readonly=True)
    device_id = Property(Int32, -1, readonly=True)
    device_bus_id = Property(str, "", readonly=True)
    data = Property(UInt64, 0, readonly=True)
    size = Property(UInt64, 0, readonly=True)
    numa_node = Property(Int32, -1, readonly=True)
    ipc_handle = Property(bytes, bytes(64), readonly=True)

    @binding
    def __init__(self) -> None:
        self._fields = MemoryFields()

    @property
    def loc(self) -> MemoryLocationType:
        assert isinstance(self._fields, MemoryFields)
        return MemoryLocationType(self._fields.loc)

    @staticmethod
    @binding
    def unpack(packed: bytes, /) -> MemoryDesc:
        return made(MemoryDesc, unpacked(packed, MemoryFields))
