"""Real engines in processes that die or stop; a healthy pair beside them goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import numpy as np
import pytest

from pdcore.bootstrap import BootstrapServer
from pdcore.children import Gone
from pdcore.decode import DecodeManager
from pdcore.demo.content.expected import aux_values
from pdcore.demo.memory import WorkerMemory
from pdcore.demo.messages import Event, Ready, RoomFailed, RoomReceived, RoomSent, WorkerSettings
from pdcore.demo.serving import chosen_backend, configuration
from pdcore.demo.workers import Worker
from pdcore.errors import FailureCode
from pdcore.model import Deadline, KVPoll, Role, RoomId
from pdcore.pairing.topology import Topology
from pdcore.prefill import KVSender, PrefillManager

DEADLINE = 20.0
TOKENS = 256
OPTIONS = {"mooncake_tcp": {"transfer_timeout": "5"}}
TRANSPORTS = {"mooncake_tcp": "tcp (verified)", "nixl": "ucx (inferred)", "nixl_tcp": "tcp (inferred)"}


Staging = Literal["off", "always"]


def settings_of(backend: str, staging: Staging = "off") -> WorkerSettings:
    return WorkerSettings(
        num_pages=2048,
        slots=16,
        deadline=DEADLINE,
        backend=backend,
        options=OPTIONS.get(backend, {}),
        staging=staging,
    )


LARGE = 600
"""Pages of a request that no socket buffer holds: 118 MB."""


@contextmanager
def workers(backend: str, *roles: Role, staging: Staging = "off") -> Iterator[list[tuple[Worker, Ready]]]:
    """Start workers, and kill them in the end, stopped ones too."""
    with ExitStack() as stack:
        started = [stack.enter_context(Worker(role, settings_of(backend, staging))) for role in roles]
        ready = []
        for worker in started:
            event = worker.read(Deadline.after(60))
            assert isinstance(event, Ready), event
            assert event.transport == TRANSPORTS[backend]
            ready.append((worker, event))
        yield ready


def serve(prefill: Worker, decode: Worker, bootstrap: str, rooms: Iterable[int]) -> None:
    for room in rooms:
        prefill.serve(RoomId(room), TOKENS)
        decode.serve(RoomId(room), TOKENS, bootstrap)


def ends(worker: Worker, rooms: Iterable[int]) -> dict[int, Event]:
    """Return how each room ended; all do by their deadline and a margin for looking at the bytes."""
    wanted, ended = set(rooms), dict[int, Event]()
    deadline = Deadline.after(DEADLINE + 60)
    while not wanted <= set(ended):
        event = worker.read(deadline)
        assert event is not None, f"no event for rooms {sorted(wanted - set(ended))}"
        assert not isinstance(event, Gone), event
        if isinstance(event, RoomSent | RoomReceived | RoomFailed):
            ended[event.room] = event
    return ended


def all_arrive(worker: Worker, rooms: Iterable[int]) -> None:
    for event in ends(worker, rooms).values():
        assert isinstance(event, RoomReceived), event
        assert not event.mismatch


@pytest.mark.parametrize("backend", TRANSPORTS)
def test_a_killed_decode_fails_its_rooms_by_name_and_others_are_served(backend: str) -> None:
    roles = (Role.PREFILL, Role.DECODE, Role.DECODE)
    with workers(backend, *roles) as ((prefill, ready), (doomed, dead), (healthy, _)):
        serve(prefill, doomed, ready.bootstrap, range(12))
        first = doomed.read(Deadline.after(60))
        assert isinstance(first, RoomReceived), first
        doomed.kill()
        serve(prefill, healthy, ready.bootstrap, range(20, 30))
        all_arrive(healthy, range(20, 30))
        failed = [e for e in ends(prefill, range(12)).values() if isinstance(e, RoomFailed)]
        named = [e for e in failed if f"pid {dead.pid}" in e.error]
        assert named
        assert {e.code for e in named} == {"peer_lost"}


@pytest.mark.parametrize("backend", TRANSPORTS)
def test_a_killed_prefill_fails_its_rooms_and_the_next_one_serves_decode(backend: str) -> None:
    roles = (Role.PREFILL, Role.DECODE, Role.PREFILL)
    with workers(backend, *roles) as ((doomed, ready), (decode, _), (second, other)):
        serve(doomed, decode, ready.bootstrap, [1])
        all_arrive(decode, [1])
        decode.serve(RoomId(2), TOKENS, ready.bootstrap)
        doomed.kill()
        serve(second, decode, other.bootstrap, range(10, 20))
        ended = ends(decode, [2, *range(10, 20)])
        assert isinstance(ended.pop(2), RoomFailed)
        assert all(isinstance(e, RoomReceived) and not e.mismatch for e in ended.values())


class Prefill:
    """A prefill worker of this process, which can be watched at each step."""

    def __init__(self, settings: WorkerSettings, manager: PrefillManager, memory: WorkerMemory) -> None:
        self.settings = settings
        self.manager = manager
        self.memory = memory

    def open(self, room: int, pages: int) -> tuple[KVSender, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
        """Open a room with its pages and aux row filled, and wait until decode has asked for it."""
        taken = self.memory.pages.take(pages, Deadline.after(10))
        assert taken is not None
        aux = aux_values(self.settings.seed, RoomId(room), pages * self.settings.page_size)
        self.memory.aux.set(room, RoomId(room), aux)
        self.memory.content.fill(self.memory.pools.arrays, RoomId(room), taken, 0)
        sender = self.manager.sender(RoomId(room), Deadline.after(DEADLINE))
        sender.init(pages, room)
        return sender, taken


@contextmanager
def own_prefill(settings: WorkerSettings) -> Iterator[tuple[Prefill, str]]:
    memory = WorkerMemory(settings, Role.PREFILL)
    backend, config = chosen_backend(settings), configuration(settings)
    with (
        BootstrapServer() as bootstrap,
        PrefillManager(backend, memory.pools, Topology(), bootstrap.address, config) as manager,
    ):
        yield Prefill(settings, manager, memory), bootstrap.address


@pytest.mark.timeout(240)
@pytest.mark.parametrize("staging", ["off", "always"])
@pytest.mark.parametrize("backend", ["mooncake_tcp", "nixl_tcp"])
def test_no_page_that_was_released_is_written_after_a_stopped_decode_goes_on(
    backend: str, staging: Staging
) -> None:
    settings = settings_of(backend, staging)
    size = settings.page_size
    with (
        own_prefill(settings) as (prefill, address),
        workers(backend, Role.DECODE, Role.DECODE, staging=staging) as ((stuck, _), (healthy, _)),
    ):
        for worker, room in ((stuck, 1), (healthy, 2)):
            worker.serve(RoomId(room), 4 * size, address)
            sender, pages = prefill.open(room, 4)
            sender.send(pages)
            all_arrive(worker, [room])
        stuck.serve(RoomId(3), LARGE * size, address)
        sender, pages = prefill.open(3, LARGE)
        while sender.poll() is KVPoll.BOOTSTRAPPING:
            sender.wait(Deadline.after(0.01))
        os.kill(stuck.pid, signal.SIGSTOP)
        try:
            sender.send(pages)
            healthy.serve(RoomId(4), TOKENS, address)
            beside, others = prefill.open(4, TOKENS // size)
            beside.send(others)
            all_arrive(healthy, [4])
            assert sender.wait(Deadline.after(60)) is KVPoll.FAILED
            failure = sender.failure()
            assert failure is not None
            assert failure.code in (FailureCode.PEER_LOST, FailureCode.DEADLINE)
            # Packed, no byte of it is read any more, nor can it land in a page.
            assert sender.release_safe() is (staging == "always")
            # What the engine still reads and sends is recognised from here on.
            for array in prefill.memory.pools.arrays:
                array[pages] = 0xEE
        finally:
            os.kill(stuck.pid, signal.SIGCONT)
        lost = ends(stuck, [3])[3]
        assert isinstance(lost, RoomFailed), lost
        # It goes on, or pairs anew, with pages that are not those of room 3 while these are unsafe.
        for room in (5, 6):
            stuck.serve(RoomId(room), LARGE * size, address)
            again, fresh = prefill.open(room, LARGE)
            again.send(fresh)
            all_arrive(stuck, [room])


@pytest.mark.timeout(240)
@pytest.mark.parametrize("backend", ["mooncake_tcp", "nixl_tcp"])
def test_pages_of_decode_are_safe_at_once_when_prefill_is_killed_or_stopped_if_all_goes_packed(
    backend: str,
) -> None:
    """Whatever the engine can prove, and whatever bytes are on their way: they land in slots."""
    settings = settings_of(backend, "always")
    size = settings.page_size
    memory = WorkerMemory(settings, Role.DECODE)
    chosen, config = chosen_backend(settings), configuration(settings)
    with (
        DecodeManager(chosen, memory.pools, Topology(), config) as decode,
        workers(backend, *[Role.PREFILL] * 3, staging="always") as started,
    ):
        for room, ((worker, ready), end) in enumerate(zip(started, ("kill", "stop", "serve"), strict=True)):
            taken = memory.pages.take(LARGE, Deadline.after(10))
            assert taken is not None
            receiver = decode.receiver(ready.bootstrap, RoomId(room), Deadline.after(DEADLINE))
            receiver.init()
            receiver.send_metadata(taken, room)
            worker.serve(RoomId(room), LARGE * size)
            if end == "serve":
                assert receiver.wait(Deadline.after(60)) is KVPoll.SUCCESS, receiver.failure()
                assert receiver.metric().slots > 20
                continue
            while not receiver.metric().slots:
                assert not receiver.poll().terminal, receiver.failure()
                receiver.wait(Deadline.after(0.001))
            if end == "kill":
                worker.kill()
            else:
                os.kill(worker.pid, signal.SIGSTOP)
            assert receiver.wait(Deadline.after(60)) is KVPoll.FAILED
            assert receiver.release_safe()
            receiver.clear()
            memory.pages.give_back(taken)
        assert not decode.unsafe().rooms
