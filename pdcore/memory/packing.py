"""Bytes of many places, packed one behind the other, and put back where they belong.

One call of numpy (or of torch, on a device) for each buffer that is touched: entries of equal length that
lie at multiples of it are rows of a table. Others are cut to the longest unit that divides all.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.contract.regions import OffsetArray, Region
from pdcore.memory.device_bytes import CudaArray, stream_of
from pdcore.model import CPU, Device, DeviceKind
from pdcore.plan import IndexArray, spread

if TYPE_CHECKING:
    import torch

__all__ = [
    "CopyCost",
    "Entries",
    "HostBytes",
    "Packable",
    "TableRows",
    "memory_to_pack",
    "pack",
    "table_rows",
    "unpack",
]

Bytes = npt.NDArray[np.uint8]

MEASURED, SMALL, LARGE = 2**20, 256, 16 * 2**10
"""Bytes that are copied to find out what copying costs, in rows of so many bytes."""


class Packable(Protocol):
    """The bytes of one region, or of one slot."""

    def part(self, start: int, nbytes: int) -> Packable:
        """Return some of them; not copied."""

    def take(self, rows: TableRows, packed: Packable) -> None:
        """Copy rows of these bytes to ``packed``, one behind the other."""

    def put(self, rows: TableRows, packed: Packable) -> None:
        """Copy ``packed`` to rows of these bytes."""


@attrs.frozen(eq=False)
class TableRows:
    """Rows ``numbers`` (int64) of a table whose rows are ``unit`` bytes, the first ``base`` bytes on."""

    base: int
    unit: int
    numbers: IndexArray


@attrs.frozen(eq=False)
class Entries:
    """One side of a :class:`~pdcore.contract.regions.WriteBatch`: entries ``starts[i]`` to ``starts[i + 1]``
    lie in region ``regions[i]``; offsets and lengths are in bytes."""

    regions: IndexArray
    starts: IndexArray
    offsets: OffsetArray
    lengths: OffsetArray


@attrs.frozen(eq=False)
class HostBytes(Packable):
    """Bytes of this process's memory, uint8."""

    array: Bytes

    @classmethod
    def of(cls, region: Region) -> HostBytes:
        """Return those of a region, whose owner must outlive them."""
        memory = memoryview((ctypes.c_ubyte * region.length).from_address(region.address))
        return cls(np.frombuffer(memory, np.uint8))

    def part(self, start: int, nbytes: int) -> HostBytes:
        return HostBytes(self.array[start : start + nbytes])

    def take(self, rows: TableRows, packed: Packable) -> None:
        table, run = self._tables(rows, packed)
        # What lies inside its region was proven: to clip is only the way that needs no copy of a copy.
        np.take(table, rows.numbers, out=run, mode="clip")

    def put(self, rows: TableRows, packed: Packable) -> None:
        table, run = self._tables(rows, packed)
        table[rows.numbers] = run

    def _tables(self, rows: TableRows, packed: Packable) -> tuple[npt.NDArray[np.void], npt.NDArray[np.void]]:
        assert isinstance(packed, HostBytes)
        row = np.dtype((np.void, rows.unit))
        end = rows.base + (len(self.array) - rows.base) // rows.unit * rows.unit
        return self.array[rows.base : end].view(row), packed.array.view(row)


@attrs.frozen(eq=False)
class DeviceTable(Packable):
    """Bytes of a device, a tensor of shape ``(bytes,)``, uint8; copied on a stream of their own."""

    tensor: torch.Tensor

    @classmethod
    def of(cls, region: Region) -> DeviceTable:
        """Return those of a region on a CUDA device, whose owner must outlive them."""
        import torch

        return cls(torch.as_tensor(CudaArray(region.address, region.length), device=str(region.device)))

    def part(self, start: int, nbytes: int) -> DeviceTable:
        return DeviceTable(self.tensor[start : start + nbytes])

    def take(self, rows: TableRows, packed: Packable) -> None:
        import torch

        with self._copying():
            table, run, numbers = self._tables(rows, packed)
            torch.index_select(table, 0, numbers, out=run)

    def put(self, rows: TableRows, packed: Packable) -> None:
        with self._copying():
            table, run, numbers = self._tables(rows, packed)
            table.index_copy_(0, numbers, run)

    def _tables(self, rows: TableRows, packed: Packable) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch

        assert isinstance(packed, DeviceTable)
        count = (len(self.tensor) - rows.base) // rows.unit
        table = self.tensor[rows.base : rows.base + count * rows.unit].view(count, rows.unit)
        numbers = torch.from_numpy(rows.numbers).to(self.tensor.device)
        return table, packed.tensor.view(-1, rows.unit), numbers

    @contextlib.contextmanager
    def _copying(self) -> Iterator[None]:
        """Copy on the stream, and wait until that is done."""
        import torch

        if not self.tensor.is_cuda:
            yield
            return
        stream = stream_of(str(self.tensor.device))
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()


@attrs.frozen
class CopyCost:
    """Seconds that packing takes for each entry and each byte."""

    per_entry: float
    per_byte: float

    @classmethod
    def measured(cls, device: Device) -> CopyCost:
        """Copy a MiB on a device, in small rows and in large ones, and see how long it takes."""
        one, other = _scratch(device), _scratch(device)
        small, large = (_seconds_for(one, other, unit) for unit in (SMALL, LARGE))
        entries = MEASURED // SMALL - MEASURED // LARGE
        return cls(max(0.0, small - large) / entries, large / MEASURED)


def memory_to_pack(regions: Sequence[Region]) -> list[Packable]:
    """Return the bytes of regions where they lie. The regions' owners must outlive them."""
    return [DeviceTable.of(r) if r.device.kind is DeviceKind.CUDA else HostBytes.of(r) for r in regions]


def pack(memory: Sequence[Packable], entries: Entries, slot: Packable) -> None:
    """Copy entries into a slot, one behind the other."""
    for region, rows, packed in _moves(entries, slot):
        memory[region].take(rows, packed)


def unpack(memory: Sequence[Packable], entries: Entries, slot: Packable) -> None:
    """Copy what was packed with the same lengths from a slot to entries; those lie inside their regions."""
    for region, rows, packed in _moves(entries, slot):
        memory[region].put(rows, packed)


def _scratch(device: Device) -> Packable:
    if device == CPU:
        return HostBytes(np.zeros(MEASURED, np.uint8))
    import torch

    return DeviceTable(torch.zeros(MEASURED, dtype=torch.uint8, device=str(device)))


def _seconds_for(one: Packable, other: Packable, unit: int) -> float:
    """Return the least of three times, of which the first touches the memory."""
    rows = TableRows(0, unit, np.arange(MEASURED // unit)[::-1].copy())
    times = []
    for _ in range(3):
        began = time.perf_counter()
        one.take(rows, other)
        times.append(time.perf_counter() - began)
    return min(times)


def _moves(entries: Entries, slot: Packable) -> Iterator[tuple[int, TableRows, Packable]]:
    """Yield for each region the rows that its entries are, and their part of the slot."""
    bounds, at = entries.starts.tolist(), 0
    for region, first, last in zip(entries.regions.tolist(), bounds, bounds[1:], strict=False):
        sizes = entries.lengths[first:last]
        nbytes = int(sizes.sum())
        yield region, table_rows(entries.offsets[first:last], sizes), slot.part(at, nbytes)
        at += nbytes


def table_rows(offsets: OffsetArray, lengths: OffsetArray) -> TableRows:
    """Return the rows of one table that some entries of a region are, each of one row or several."""
    unit = int(np.gcd.reduce(lengths))
    base = int(offsets[0]) % unit
    if np.count_nonzero(offsets % np.uint64(unit) != base):
        unit, base = math.gcd(unit, int(np.gcd.reduce(offsets))), 0
    numbers = ((offsets - np.uint64(base)) // np.uint64(unit)).astype(np.int64)
    return TableRows(base, unit, spread(numbers, (lengths // np.uint64(unit)).astype(np.int64)))
