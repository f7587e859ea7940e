"""Figures of a device that the checks don't give: ``python tests/gpu/figures.py cuda``."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from pdcore import AuxField, AuxSchema, MetadataBuffers, RoomId
from pdcore.memory.device_bytes import DeviceBytes
from pdcore.model import Device, DeviceKind

MIB = 2**20
BUSY = 1_500_000_000
"""Cycles of a kernel that holds the default stream for the better part of a second."""


def seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Return the median of some rounds; a first one isn't counted. The work waits for the device."""
    work()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def digests(device: str) -> None:
    """Tell how fast pages are digested where they lie."""
    size = 256 * MIB if device != "cpu" else 4 * MIB
    memory = DeviceBytes(torch.randint(0, 256, (size,), dtype=torch.uint8, device=device))
    for length in (16 * 1024, 256 * 1024):
        for name, count in (("all", size // length), ("a sample", min(64, size // length))):
            offsets, lengths = np.arange(count) * length, np.full(count, length)
            took = seconds(lambda a=offsets, b=lengths: memory.digests(a, b))  # type: ignore[misc]
            rate = count * length / took / 1e9
            what = f"digests of pages of {length >> 10} KiB, {name} ({count})"
            print(f"{what}: {1e3 * took:.2f} ms, {rate:.2f} GB/s")


def aux_beside_a_kernel(device: str) -> None:
    """Tell what a look at an aux row takes while the model's stream is busy."""
    aux = MetadataBuffers(AuxSchema((AuxField("token", "int64"),)), 8, device=Device(DeviceKind.CUDA))
    aux.set(1, RoomId(7), {"token": 5})
    print(f"an aux row on {device}, read: {1e3 * seconds(lambda: aux.get(1, RoomId(7))):.3f} ms")
    torch.cuda._sleep(BUSY)  # type: ignore[no-untyped-call]
    began = time.perf_counter()
    aux.get(1, RoomId(7))
    looked = time.perf_counter() - began
    torch.cuda.synchronize()
    held = time.perf_counter() - began
    print(f"the same while the default stream is busy for {1e3 * held:.0f} ms: {1e3 * looked:.3f} ms")


if __name__ == "__main__":
    digests(sys.argv[1])
    if sys.argv[1] != "cpu":
        aux_beside_a_kernel(sys.argv[1])
