"""Many rooms at once and peers that die, on the real MORI-IO over an emulated NIC."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from pair import SCHEMA, Pair, config, fill, same_pages, soon
from pd_mori.engine import MoriEngine
from test_mori_engine import threads_and_files

from pdcore import (
    BootstrapServer,
    DecodeManager,
    KVLayout,
    KVPoll,
    KVReceiver,
    KVSender,
    MetadataBuffers,
    Pools,
    PrefillManager,
    RoomId,
    Topology,
    TransferModel,
    select,
)
from pdcore.children import Gone
from pdcore.demo.messages import Event, Ready, RoomFailed, RoomReceived, RoomSent, WorkerSettings
from pdcore.demo.workers import Worker
from pdcore.model import Deadline, Role

SECONDS = float(os.environ.get("MORI_LOAD_SECONDS", "5"))
"""How long the rooms go on; MORI_LOAD_SECONDS=60 by hand."""
ROOMS, PAGES = 256, 4
"""Rooms at once, and pages of each."""
WARM = 3
"""Rounds after which memory must not grow any more."""
GROWTH = 16 * 2**20
"""Bytes that one process may grow by in all later rounds: the allocators' noise."""


def make_pools() -> Pools:
    layout = KVLayout.heads(layers=range(4), kv_heads=2, head_dim=64, page_size=16, num_pages=ROOMS * PAGES)
    return Pools.allocate(layout, aux=MetadataBuffers(SCHEMA, ROOMS))


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def one_round(pair: Pair, number: int) -> None:
    """Serve ROOMS rooms at once, each with pages and an aux row of its own, and check what arrived."""
    here, there = (np.random.default_rng(number + side).permutation(ROOMS * PAGES) for side in (0, 1))
    source, target = here.reshape(ROOMS, PAGES), there.reshape(ROOMS, PAGES)
    rooms: list[tuple[KVSender, KVReceiver]] = []
    first = number * ROOMS
    for slot in range(ROOMS):
        sender, receiver = pair.open(first + slot)
        assert pair.prefill.pools.aux is not None
        pair.prefill.pools.aux.set(slot, RoomId(first + slot), {"first_token": first + slot})
        sender.init(PAGES, slot)
        receiver.send_metadata(target[slot], slot)
        rooms.append((sender, receiver))
    for slot, (sender, _) in enumerate(rooms):
        sender.send(source[slot, :1])
        sender.send(source[slot, 1:])
    for slot, (sender, receiver) in enumerate(rooms):
        assert sender.wait(soon()) is KVPoll.SUCCESS, sender.failure()
        assert receiver.wait(soon()) is KVPoll.SUCCESS, receiver.failure()
        assert pair.decode.pools.aux is not None
        assert pair.decode.pools.aux.get(slot, RoomId(first + slot))["first_token"] == first + slot
        sender.clear()
        receiver.clear()
    assert same_pages(pair.prefill.pools, here.tolist(), pair.decode.pools, there.tolist())


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("model", list(TransferModel))
@pytest.mark.parametrize("aux", ["tcp", "engine"])
def test_256_rooms_at_once_leave_nothing_behind(model: TransferModel, aux: str) -> None:
    backend = select("mori", {"aux_rdma": aux == "engine", "qp_per_transfer": 2})
    cfg = config(model)
    source = make_pools()
    fill(source, 1)
    with (
        BootstrapServer() as bootstrap,
        PrefillManager(backend, source, Topology(), bootstrap.address, cfg) as prefill,
        DecodeManager(backend, make_pools(), Topology(), cfg) as decode,
    ):
        pair = Pair(bootstrap, prefill, decode)
        assert isinstance(prefill.engine, MoriEngine)
        assert prefill.aux_transports[0].value == aux
        number = 0
        until = Deadline.after(SECONDS)
        before, memory = (0, 0), 0
        while number <= WARM or not until.expired:
            if number == WARM:
                before, memory = threads_and_files(), resident()
            one_round(pair, number)
            number += 1
        assert len(prefill.engine.flights) == 0
        assert len(prefill.quarantine) == 0
        # Connections to the bootstrap service end when they were idle for a while: there may be fewer.
        now = threads_and_files()
        assert all(after <= earlier for after, earlier in zip(now, before, strict=True)), (before, now)
        assert resident() - memory < GROWTH, f"{number} rounds"


def settings() -> WorkerSettings:
    # Not packed, or all has arrived before a worker is killed.
    return WorkerSettings(num_pages=2048, slots=16, deadline=20.0, backend="mori", staging="off")


def ready(worker: Worker) -> Ready:
    event = worker.read(Deadline.after(60))
    assert isinstance(event, Ready), event
    assert event.transport == "rdma (verified)"
    return event


def ends(worker: Worker, rooms: Iterable[int]) -> dict[int, Event]:
    """Return how each room ended."""
    wanted, ended = set(rooms), dict[int, Event]()
    while not wanted <= set(ended):
        event = worker.read(Deadline.after(90))
        assert event is not None, f"no event for rooms {sorted(wanted - set(ended))}"
        assert not isinstance(event, Gone), event
        if isinstance(event, RoomSent | RoomReceived | RoomFailed):
            ended[event.room] = event
    return ended


def serve(prefill: Worker, decode: Worker, bootstrap: str, rooms: Iterable[int]) -> None:
    for room in rooms:
        prefill.serve(RoomId(room), 256)
        decode.serve(RoomId(room), 256, bootstrap)


def test_a_decode_that_is_killed_under_load_fails_its_rooms_by_name_and_its_successor_pairs() -> None:
    with (
        Worker(Role.PREFILL, settings()) as prefill,
        Worker(Role.DECODE, settings()) as doomed,
        Worker(Role.DECODE, settings()) as healthy,
    ):
        bootstrap = ready(prefill).bootstrap
        dead = ready(doomed)
        ready(healthy)
        serve(prefill, doomed, bootstrap, range(12))
        first = doomed.read(Deadline.after(60))
        assert isinstance(first, RoomReceived), first
        doomed.kill()
        serve(prefill, healthy, bootstrap, range(20, 30))
        arrived = ends(healthy, range(20, 30)).values()
        assert all(isinstance(event, RoomReceived) and not event.mismatch for event in arrived), arrived
        failed = [event for event in ends(prefill, range(12)).values() if isinstance(event, RoomFailed)]
        assert {event.code for event in failed} <= {"peer_lost", "deadline"}
        named = [event for event in failed if f"pid {dead.pid}" in event.error]
        # Whoever is first says it: MORI, when its retries are used up, or the kernel, of the process.
        reasons = ("ERR_RDMA_OP: ", f"process {dead.pid} has ended")
        assert named
        assert all(any(reason in event.error for reason in reasons) for event in named), named
        with Worker(Role.DECODE, settings()) as successor:
            ready(successor)
            serve(prefill, successor, bootstrap, range(40, 50))
            arrived = ends(successor, range(40, 50)).values()
            assert all(isinstance(event, RoomReceived) and not event.mismatch for event in arrived), arrived


def test_a_prefill_that_is_killed_fails_its_rooms_and_the_next_one_serves_decode() -> None:
    with (
        Worker(Role.PREFILL, settings()) as doomed,
        Worker(Role.DECODE, settings()) as decode,
        Worker(Role.PREFILL, settings()) as second,
    ):
        bootstrap = ready(doomed).bootstrap
        ready(decode)
        other = ready(second).bootstrap
        serve(doomed, decode, bootstrap, [1])
        assert isinstance(ends(decode, [1])[1], RoomReceived)
        decode.serve(RoomId(2), 256, bootstrap)
        doomed.kill()
        serve(second, decode, other, range(10, 20))
        ended = ends(decode, [2, *range(10, 20)])
        assert isinstance(ended.pop(2), RoomFailed)
        assert all(isinstance(event, RoomReceived) and not event.mismatch for event in ended.values()), ended
