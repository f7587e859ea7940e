"""Where aux data lies: in host memory, or in a torch tensor on any device."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from pdcore.contract.regions import Region
from pdcore.errors import LayoutError
from pdcore.model import CPU, Device

if TYPE_CHECKING:
    import torch

__all__ = [
    "Bytes",
    "Numbers",
    "Rows",
    "device_memory",
    "host_memory",
    "number_bytes",
    "number_of",
    "rows_in",
    "rows_of",
    "rows_on",
]

Bytes = npt.NDArray[np.uint8]
NUMBER_BYTES = 8


class Rows(Protocol):
    """Rows of bytes by slot. Rows of different slots may be used from different threads."""

    def read(self, slot: int, start: int = 0, length: int | None = None) -> Bytes:
        """Return a copy of a row, or of ``length`` bytes of it from ``start`` on."""

    def write(self, slot: int, data: Bytes, start: int = 0) -> None:
        """Replace bytes of a row, from ``start`` on."""

    def numbers(self, start: int) -> Numbers:
        """Return the numbers (int64) that begin at ``start`` of each row, to be read and written by slot."""

    def region(self, name: str) -> Region:
        """Return the engine region of all rows."""


class Numbers(Protocol):
    """A number per slot."""

    def __getitem__(self, slot: int, /) -> Any: ...

    def __setitem__(self, slot: int, value: int, /) -> None: ...


class _HostRows:
    def __init__(self, memory: Bytes) -> None:
        self._memory = memory

    def read(self, slot: int, start: int = 0, length: int | None = None) -> Bytes:
        end = None if length is None else start + length
        row: Bytes = self._memory[slot, start:end].copy()
        return row

    def write(self, slot: int, data: Bytes, start: int = 0) -> None:
        self._memory[slot, start : start + len(data)] = data

    def numbers(self, start: int) -> Numbers:
        return self._memory[:, start : start + NUMBER_BYTES].view(np.int64)[:, 0]

    def region(self, name: str) -> Region:
        return Region.of(name, self._memory)


class _TensorRows:
    """A torch tensor. Reading and writing wait for the device, and leave its other work alone."""

    def __init__(self, memory: torch.Tensor) -> None:
        self._memory = memory

    def read(self, slot: int, start: int = 0, length: int | None = None) -> Bytes:
        end = None if length is None else start + length
        row: Bytes = self._memory[slot, start:end].cpu().numpy().copy()
        return row

    def write(self, slot: int, data: Bytes, start: int = 0) -> None:
        import torch

        self._memory[slot, start : start + len(data)].copy_(torch.from_numpy(data))

    def numbers(self, start: int) -> Numbers:
        return _TensorNumbers(self, start)

    def region(self, name: str) -> Region:
        return Region.of(name, self._memory)


class _TensorNumbers:
    def __init__(self, rows: _TensorRows, start: int) -> None:
        self._rows, self._start = rows, start

    def __getitem__(self, slot: int) -> int:
        return number_of(self._rows.read(slot, self._start, NUMBER_BYTES))

    def __setitem__(self, slot: int, value: int) -> None:
        self._rows.write(slot, number_bytes(value), self._start)


def number_bytes(number: int) -> Bytes:
    """Return a number as it lies in a row."""
    return np.array([number], np.int64).view(np.uint8)


def number_of(data: Bytes) -> int:
    """Return the number with which some bytes of a row begin."""
    return int(data[:NUMBER_BYTES].view(np.int64)[0])


def host_memory(what: str, items: int, item_len: int) -> Bytes:
    """Return new bytes in host memory, shape ``(items, item_len)``, all zero.

    Raises:
        LayoutError: the machine has no such memory.
    """
    try:
        return np.zeros((items, item_len), np.uint8)
    except (MemoryError, ValueError) as error:
        there_is = f"{items} items of {item_len} bytes: {error}"
        raise LayoutError(f"there is no memory for {what}", there_is, "use fewer or smaller items") from error


def device_memory(what: str, items: int, item_len: int, device: Device) -> torch.Tensor:
    """Return new bytes on a device, a tensor of shape ``(items, item_len)``, uint8, all zero.

    Raises:
        LayoutError: torch is missing or has no such device, or there is no such memory.
    """
    try:
        import torch

        return torch.zeros((items, item_len), dtype=torch.uint8, device=str(device))
    # torch raises several classes for a device that is not there.
    except (ImportError, RuntimeError, AssertionError) as error:
        raise LayoutError(
            f"{what} cannot lie on {device}",
            f"{type(error).__name__}: {str(error).splitlines()[0]}",
            "install torch for that device, or keep them in host memory",
        ) from error


def rows_on(device: Device, slots: int, row_len: int) -> Rows:
    """Return new rows, all zero: of numpy in host memory, of torch on a device.

    Raises:
        LayoutError: torch is missing or has no such device, or there is no such memory.
    """
    if device == CPU:
        return _HostRows(host_memory("the aux buffers", slots, row_len))
    return _TensorRows(device_memory("the aux buffers", slots, row_len, device))


def rows_in(memory: object, slots: int, row_len: int) -> Rows:
    """Return rows over a numpy array or torch tensor of shape ``(slots, row_len)``, uint8, contiguous.

    Raises:
        LayoutError: it is of another shape, dtype or type.
    """
    shape, dtype = tuple(getattr(memory, "shape", ())), str(getattr(memory, "dtype", ""))
    if shape == (slots, row_len) and dtype in ("uint8", "torch.uint8"):
        Region.of("aux", memory)  # refuses what is not contiguous or cannot be written to
        if isinstance(memory, np.ndarray):
            return _HostRows(memory)
        return _TensorRows(memory)  # type: ignore[arg-type]  # Region.of takes nothing else
    raise LayoutError(
        "this memory cannot hold the aux rows",
        f"a {type(memory).__name__} of shape {shape}, {dtype or 'without a dtype'}",
        f"hand in a uint8 numpy array or torch tensor of shape {(slots, row_len)}",
    )


def rows_of(region: Region, slots: int) -> Rows:
    """Return the rows of a region that was made of an array or a tensor of ``slots`` items."""
    item_len = region.item_len or region.length // slots
    stride = region.item_stride or item_len
    if region.device != CPU:
        return _TensorRows(_tensor_of_bytes(region.owner, slots, item_len, stride))
    memory = memoryview((ctypes.c_uint8 * region.length).from_address(region.address)).cast("B")
    return _HostRows(np.ndarray((slots, item_len), np.uint8, memory, strides=(stride, 1)))


def _tensor_of_bytes(tensor: Any, slots: int, item_len: int, stride: int) -> torch.Tensor:
    import torch

    size = tensor.element_size()
    apart: torch.Tensor = tensor.detach().as_strided((slots, item_len // size), (stride // size, 1))
    return apart.view(torch.uint8)
