"""Digests of what a write batch copies: of every page or of a sample, the same on both sides.

A *span* is the part of one entry that lies in one item (page, slot, row) of the target region. So a digest
names a page even where entries were merged, and works for whole items and slices of them alike.
"""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Sequence
from typing import Literal

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.contract.regions import Region, WriteBatch
from pdcore.errors import ConfigError, ConfigProblem
from pdcore.model import DeviceKind
from pdcore.plan import IndexArray

__all__ = ["SAMPLED", "Spans", "Verify", "digests_of", "memory_of", "require_host_memory", "spans_of"]

Verify = Literal["off", "sample", "all"]
SAMPLED = 64
"""Spans of one chunk and destination that a sample has at most."""


@attrs.frozen(eq=False)
class Spans:
    """Copied bytes, as int64 arrays of one length: where they lie on both sides (offsets in bytes)."""

    local_regions: IndexArray
    local_offsets: IndexArray
    remote_regions: IndexArray
    remote_offsets: IndexArray
    lengths: IndexArray


def spans_of(batch: WriteBatch, strides: npt.NDArray[np.int64], most: int | None, seed: int) -> Spans:
    """Return the spans of a batch, or ``most`` of them, drawn by ``seed``.

    ``strides`` are the bytes from item to item of the remote regions, by number.
    """
    counts = np.diff(batch.starts)
    lens = strides[batch.remote_regions].repeat(counts)
    offsets, sizes = batch.remote_offsets.astype(np.int64), batch.lengths.astype(np.int64)
    first = offsets // lens
    spans = (offsets + sizes - 1) // lens - first + 1
    ends = spans.cumsum()
    total = int(ends[-1]) if len(ends) else 0
    chosen = np.arange(total)
    if most is not None and total > most:
        chosen = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    entry = np.searchsorted(ends, chosen, "right")
    item = first[entry] + chosen - (ends - spans)[entry]
    start = np.maximum(offsets[entry], item * lens[entry])
    end = np.minimum((offsets + sizes)[entry], (item + 1) * lens[entry])
    return Spans(
        batch.local_regions.repeat(counts)[entry],
        batch.local_offsets.astype(np.int64)[entry] + start - offsets[entry],
        batch.remote_regions.repeat(counts)[entry],
        start,
        end - start,
    )


def memory_of(regions: Sequence[Region]) -> list[memoryview]:
    """Return the bytes of regions in host memory, not copied. The regions' owners must outlive them."""
    return [memoryview((ctypes.c_ubyte * r.length).from_address(r.address)).cast("B") for r in regions]


def digests_of(
    memory: Sequence[memoryview], regions: IndexArray, offsets: IndexArray, lengths: IndexArray
) -> IndexArray:
    """Return the CRC-32 of each span. A loop over spans: for threads that may take their time."""
    spans = zip(regions.tolist(), offsets.tolist(), lengths.tolist(), strict=True)
    return np.array([zlib.crc32(memory[r][at : at + size]) for r, at, size in spans], np.int64)


def require_host_memory(verify: Verify, regions: Sequence[Region]) -> None:
    """Check that the regions can be digested.

    Raises:
        ConfigError: a region lies on a device, which pdcore reads nothing from.
    """
    elsewhere = [region for region in regions if region.device.kind is not DeviceKind.CPU]
    if verify != "off" and elsewhere:
        region = elsewhere[0]
        reason = f"{verify!r} needs host memory, and {region.name} lies on {region.device}; set it to 'off'"
        raise ConfigError([ConfigProblem("transfer.verify", "configuration", reason)])
