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
from pdcore.memory.device_bytes import DeviceBytes, objection_to_digests
from pdcore.model import DeviceKind
from pdcore.plan import IndexArray

__all__ = ["SAMPLED", "Spans", "Verify", "digests_of", "memory_of", "require_digestible", "spans_of"]

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


def memory_of(regions: Sequence[Region]) -> list[memoryview | DeviceBytes]:
    """Return the bytes of regions where they lie, not copied. The regions' owners must outlive them."""
    return [DeviceBytes.of(r) if r.device.kind is DeviceKind.CUDA else _on_host(r) for r in regions]


def _on_host(region: Region) -> memoryview:
    return memoryview((ctypes.c_ubyte * region.length).from_address(region.address)).cast("B")


def digests_of(
    memory: Sequence[memoryview | DeviceBytes], regions: IndexArray, offsets: IndexArray, lengths: IndexArray
) -> IndexArray:
    """Return the CRC-32 of each span, int64; a device computes those of its memory. A loop over spans of
    the host: for threads that may take their time."""
    found = np.zeros(len(regions), np.int64)
    for number in np.unique(regions).tolist():
        chosen, there = np.flatnonzero(regions == number), memory[number]
        if isinstance(there, memoryview):
            spans = zip(offsets[chosen].tolist(), lengths[chosen].tolist(), strict=True)
            found[chosen] = [zlib.crc32(there[at : at + size]) for at, size in spans]
        else:
            found[chosen] = there.digests(offsets[chosen], lengths[chosen])
    return found


def require_digestible(verify: Verify, regions: Sequence[Region]) -> None:
    """Check that the regions can be digested.

    Raises:
        ConfigError: a region lies on a device that pdcore reads nothing from, or not without torch.
    """
    elsewhere = [region for region in regions if region.device.kind is not DeviceKind.CPU]
    if verify != "off" and elsewhere and (why := objection_to_digests(elsewhere[0])):
        region = elsewhere[0]
        reason = f"{verify!r} cannot digest {region.name} on {region.device}: {why}; set it to 'off'"
        raise ConfigError([ConfigProblem("transfer.verify", "configuration", reason)])
