"""Memory on a device, digested there: the CRC-32 of spans by torch, the same as zlib's.

CRC-32 is linear. So every word of a span becomes a register of its own, and neighbours are combined, in
a tree: the left one is advanced over as many zero bytes as the right one stands for, then both are added.
"""

from __future__ import annotations

import contextlib
import functools
import zlib
from typing import TYPE_CHECKING

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.contract.regions import Region
from pdcore.errors import PlanError
from pdcore.model import DeviceKind
from pdcore.plan import IndexArray

if TYPE_CHECKING:
    import torch

__all__ = ["CudaArray", "DeviceBytes", "objection_to_digests", "stream_of"]

AT_ONCE = 2**21
"""Words of 4 bytes that are worked on at a time: some 64 MiB of the device's memory for a moment."""
POLYNOMIAL = 0xEDB88320
LEVELS = 32
"""Lengths of 4, 8, 16... bytes over which a register is advanced."""

Table = npt.NDArray[np.uint32]


@attrs.frozen
class CudaArray:
    """Memory by its address, as torch takes it from others; it keeps nothing alive."""

    address: int
    length: int

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {"shape": (self.length,), "typestr": "|u1", "data": (self.address, False), "version": 3}


class DeviceBytes:
    """The bytes of a region, a tensor of shape ``(bytes,)``, uint8. Its owner must outlive them.

    Kernels run on a stream of their own, so that they don't wait for those of the model.
    """

    def __init__(self, memory: torch.Tensor) -> None:
        self._bytes = memory
        self._stream = stream_of(str(memory.device)) if memory.is_cuda else None
        self._tables = _tables_on(str(memory.device))

    @classmethod
    def of(cls, region: Region) -> DeviceBytes:
        """Return the bytes of a region on a CUDA device."""
        import torch

        return cls(torch.as_tensor(CudaArray(region.address, region.length), device=str(region.device)))

    def digests(self, offsets: IndexArray, lengths: IndexArray) -> IndexArray:
        """Return the CRC-32 of the span at each offset, int64; waits for the device.

        Raises:
            PlanError: a span leaves the region. A kernel that read there would end all of this process's.
        """
        import torch

        outside = (offsets < 0) | (lengths < 1) | (offsets + lengths > len(self._bytes))
        if outside.any():
            bad = int(np.flatnonzero(outside)[0])
            raise PlanError(
                "a span to be digested leaves its region",
                f"{int(lengths[bad])} bytes at offset {int(offsets[bad])} of {len(self._bytes)}",
                "check the page indices against the pools of both sides",
            )
        found = np.zeros(len(offsets), np.int64)
        with torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext():
            for length in np.unique(lengths).tolist():
                chosen = np.flatnonzero(lengths == length)
                most = max(1, AT_ONCE * 4 // length)
                for first in range(0, len(chosen), most):
                    part = chosen[first : first + most]
                    found[part] = self._registers(offsets[part], length) ^ _of_zeros(length)
        return found

    def _registers(self, offsets: IndexArray, length: int) -> IndexArray:
        """Return the registers after spans of one length, of a CRC that begins with 0."""
        import torch

        words = -(-length // 4)
        padded = 1 << (words - 1).bit_length()
        starts = torch.from_numpy(offsets).to(self._bytes.device)[:, None]
        # Zero bytes in front leave a register of 0 as it is.
        rows = torch.zeros((len(offsets), padded), dtype=torch.int32, device=self._bytes.device)
        aligned = length % 4 == 0 and not (offsets % 4).any() and self._bytes.data_ptr() % 4 == 0
        unit = 4 if aligned else 1
        whole = self._bytes[: len(self._bytes) // unit * unit]
        source, target = (whole.view(torch.int32), rows) if aligned else (whole, rows.view(torch.uint8))
        count = length // unit
        steps = torch.arange(count, device=self._bytes.device)
        target[:, target.shape[1] - count :] = source[starts // unit + steps]
        rows = self._advanced(rows, 0)
        level = 0
        while rows.shape[1] > 1:
            rows = self._advanced(rows[:, ::2], level) ^ rows[:, 1::2]
            level += 1
        registers: IndexArray = rows[:, 0].cpu().numpy().view(np.uint32).astype(np.int64)
        return registers

    def _advanced(self, registers: torch.Tensor, level: int) -> torch.Tensor:
        """Return the registers after ``4 << level`` zero bytes more."""
        tables = self._tables[level]
        advanced = tables[0][(registers & 255).long()]
        for number in range(1, 4):
            advanced ^= tables[number][((registers >> (8 * number)) & 255).long()]
        return advanced


def objection_to_digests(region: Region) -> str:
    """Return why a region on a device cannot be digested, or ""."""
    if region.device.kind is not DeviceKind.CUDA:
        return "pdcore digests memory of CPUs and of CUDA devices only"
    try:
        import torch
    except ImportError as error:
        return f"it takes torch: {error}"
    count = torch.cuda.device_count()
    return "" if region.device.index < count else f"torch {torch.__version__} sees {count} CUDA devices"


@functools.cache
def stream_of(device: str) -> torch.cuda.Stream:
    """Return the stream of a device on which pdcore reads and copies, beside the model's."""
    import torch

    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@functools.cache
def _tables_on(device: str) -> torch.Tensor:
    import torch

    return torch.from_numpy(_tables().view(np.int32)).to(device)


@functools.cache
def _of_zeros(length: int) -> int:
    return zlib.crc32(bytes(length))


@functools.cache
def _tables() -> Table:
    """Return for each level and each byte of a register what it becomes, shape (LEVELS, 4, 256)."""
    byte = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        byte = np.where(byte & 1, (byte >> 1) ^ np.uint32(POLYNOMIAL), byte >> 1)
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    images = bits
    for _ in range(4):
        images = (images >> 8) ^ byte[images & 255]
    tables = np.zeros((LEVELS, 4, 256), np.uint32)
    values = np.arange(256)
    for level in range(LEVELS):
        for bit, image in enumerate(images):
            tables[level, bit // 8] ^= np.where(values >> bit % 8 & 1, image, np.uint32(0))
        images = functools.reduce(
            np.bitwise_xor, (tables[level, n][(images >> np.uint32(8 * n)) & 255] for n in range(4))
        )
    return tables
