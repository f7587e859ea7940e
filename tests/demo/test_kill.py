"""Processes that die or stop in the middle of their work; the others go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable

import pytest

from pdcore.children import Gone
from pdcore.demo.messages import Event, Ready, RoomFailed, RoomReceived, RoomSent, WorkerSettings
from pdcore.demo.workers import Worker
from pdcore.model import Deadline, Role, RoomId

DEADLINE = 12.0
TOKENS = 1024
SETTINGS = WorkerSettings(num_pages=2600, slots=40, deadline=DEADLINE)
"""All rooms of a test are open at once, so that those that are not paired yet are hit as well."""


def start(role: Role) -> tuple[Worker, Ready]:
    worker = Worker(role, SETTINGS)
    event = worker.read(Deadline.after(60))
    if not isinstance(event, Ready):
        worker.kill()
    assert isinstance(event, Ready), event
    return worker, event


def collect(worker: Worker, rooms: Iterable[int]) -> dict[int, Event]:
    """Return the last event of every room; none may be missing by the rooms' deadline and a margin."""
    wanted, ended = set(rooms), dict[int, Event]()
    deadline = Deadline.after(DEADLINE + 30)
    while set(ended) != wanted:
        event = worker.read(deadline)
        assert event is not None, f"no event for rooms {sorted(wanted - set(ended))}"
        assert not isinstance(event, Gone), event
        if isinstance(event, RoomSent | RoomReceived | RoomFailed):
            ended[event.room] = event
    return ended


def serve(prefill: Worker, decode: Worker, bootstrap: str, rooms: Iterable[int]) -> None:
    for room in rooms:
        prefill.serve(RoomId(room), TOKENS)
        decode.serve(RoomId(room), TOKENS, bootstrap)


def reap(*workers: Worker) -> None:
    for worker in workers:
        worker.kill()


def first_success(worker: Worker) -> None:
    """Wait until one request has arrived, so that others are on their way."""
    event = worker.read(Deadline.after(60))
    assert isinstance(event, RoomReceived), event


def test_a_killed_decode_fails_its_rooms_by_name_and_prefill_serves_the_next() -> None:
    prefill, ready = start(Role.PREFILL)
    doomed, doomed_ready = start(Role.DECODE)
    workers = [prefill, doomed]
    try:
        serve(prefill, doomed, ready.bootstrap, range(40))
        first_success(doomed)
        doomed.kill()
        ended = collect(prefill, range(40))
        failed = [e for e in ended.values() if isinstance(e, RoomFailed)]
        assert any(isinstance(e, RoomSent) for e in ended.values())
        assert failed
        named = [e for e in failed if f"pid {doomed_ready.pid}" in e.error]
        assert named
        assert {e.code for e in named} == {"peer_lost"}
        # The rest had not reached prefill's control channel when decode died.
        assert {e.code for e in failed if e not in named} <= {"deadline"}

        second, _ = start(Role.DECODE)
        workers.append(second)
        serve(prefill, second, ready.bootstrap, range(100, 110))
        received = collect(second, range(100, 110))
        assert all(isinstance(e, RoomReceived) and not e.mismatch for e in received.values())
        assert all(isinstance(e, RoomSent) for e in collect(prefill, range(100, 110)).values())
    finally:
        reap(*workers)


def test_a_killed_prefill_fails_its_rooms_by_name_and_decode_takes_the_next() -> None:
    doomed, ready = start(Role.PREFILL)
    decode, _ = start(Role.DECODE)
    workers = [doomed, decode]
    try:
        serve(doomed, decode, ready.bootstrap, range(40))
        first_success(decode)
        doomed.kill()
        ended = collect_rest(decode, 40)
        failed = [e for e in ended if isinstance(e, RoomFailed)]
        assert failed
        assert all(e.code in ("peer_lost", "deadline") for e in failed)
        assert any(ready.bootstrap.split(":")[0] in e.error for e in failed)

        second, second_ready = start(Role.PREFILL)
        workers.append(second)
        serve(second, decode, second_ready.bootstrap, range(100, 110))
        received = collect(decode, range(100, 110))
        assert all(isinstance(e, RoomReceived) and not e.mismatch for e in received.values())
    finally:
        reap(*workers)


def collect_rest(worker: Worker, count: int) -> list[Event]:
    """Return the events of all rooms but the one that was seen to arrive."""
    events: list[Event] = []
    deadline = Deadline.after(DEADLINE + 30)
    while len(events) < count - 1:
        event = worker.read(deadline)
        assert event is not None, f"{count - 1 - len(events)} rooms did not end"
        assert not isinstance(event, Gone), event
        events.append(event)
    return events


@pytest.mark.timeout(180)
def test_a_stopped_decode_does_not_stall_the_one_beside_it() -> None:
    prefill, ready = start(Role.PREFILL)
    stuck, _ = start(Role.DECODE)
    healthy, _ = start(Role.DECODE)
    try:
        serve(prefill, stuck, ready.bootstrap, [1])
        first_success(stuck)
        os.kill(stuck.pid, signal.SIGSTOP)
        serve(prefill, healthy, ready.bootstrap, range(10, 30))
        stuck.serve(RoomId(2), TOKENS, ready.bootstrap)
        received = collect(healthy, range(10, 30))
        assert all(isinstance(e, RoomReceived) and not e.mismatch for e in received.values())
    finally:
        os.kill(stuck.pid, signal.SIGCONT)
        reap(prefill, stuck, healthy)
