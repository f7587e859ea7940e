"""Serving a load as a scheduler does: keep requests in flight, wait until some ended, start the next."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pdcore.bench.messages import Load, Loaded
from pdcore.demo.content.expected import AUX_SCHEMA
from pdcore.demo.content.models import MODELS
from pdcore.demo.messages import WorkerSettings
from pdcore.errors import PDCoreError
from pdcore.memory.metadata_buffers import MetadataBuffers
from pdcore.memory.pools import Pools
from pdcore.model import Deadline, Device, KVPoll, Role, RoomId
from pdcore.rooms.handle import RoomHandle

__all__ = ["BenchError", "LoadSide", "allocate", "pages_of", "serve_load"]


class BenchError(PDCoreError):
    """The benchmark could not run to its end."""


class LoadSide(Protocol):
    """One side of the benchmark; ``slot`` says which pages and which aux row a request uses."""

    def start(self, room: RoomId, slot: int, pages: npt.NDArray[np.int64]) -> RoomHandle:
        """Create the sender or receiver and hand it its pages."""

    def ended(self, room: RoomId, slot: int) -> None:
        """Use what arrived."""

    def finished(self, deadline: Deadline) -> list[RoomId]:
        """Return the rooms that ended since the last call, waiting for the first."""


def allocate(settings: WorkerSettings, aux_device: Device) -> tuple[Pools, MetadataBuffers]:
    """Return the pools and aux rows of one side, with every page touched."""
    aux = MetadataBuffers(AUX_SCHEMA, settings.slots, device=aux_device)
    layout = MODELS[settings.model].layout(settings.page_size, settings.num_pages)
    pools = Pools.allocate(layout, aux=aux, device=settings.device)
    for array in pools.arrays:
        array.fill(1)  # zeros would not make the system hand out memory
    return pools, aux


def pages_of(load: Load, role: Role, num_pages: int) -> list[npt.NDArray[np.int64]]:
    """Return the pages of every slot; scattered ones differ between the two sides."""
    count = load.in_flight * load.pages
    order = np.arange(count, dtype=np.int64)
    if load.scattered:
        seed = 1 if role is Role.PREFILL else 2
        order = np.random.default_rng(seed).permutation(num_pages)[:count].astype(np.int64)
    return list(order.reshape(load.in_flight, load.pages))


def serve_load(load: Load, side: LoadSide, pages: list[npt.NDArray[np.int64]], seconds: float) -> Loaded:
    """Serve a load to its end.

    Raises:
        KVTransferError: a request failed.
        BenchError: no request ended within ``seconds``.
    """
    flying: dict[RoomId, tuple[RoomHandle, int, float]] = {}
    slots = list(range(load.in_flight))
    waiting = iter(range(load.first_room, load.first_room + load.requests))
    latencies: list[float] = []
    began, cpu = time.monotonic(), time.process_time()
    while len(latencies) < load.requests:
        while slots and (number := next(waiting, None)) is not None:
            room, slot, now = RoomId(number), slots.pop(), time.monotonic()
            flying[room] = (side.start(room, slot, pages[slot]), slot, now)
        ended = side.finished(Deadline.after(seconds))
        now = time.monotonic()
        if not ended:
            raise BenchError(
                "the benchmark stands still",
                f"no request of {len(flying)} in flight ended within {seconds:g} s",
                "look at what the far side logged",
            )
        for room in filter(flying.__contains__, ended):  # others are another load's
            handle, slot, start = flying.pop(room)
            if handle.poll() is not KVPoll.SUCCESS:
                raise handle.failure() or BenchError("a request failed", f"room {room}", "look at the log")
            side.ended(room, slot)
            handle.clear()
            slots.append(slot)
            latencies.append(now - start)
    return Loaded(latencies, time.monotonic() - began, time.process_time() - cpu)
