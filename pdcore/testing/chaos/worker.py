"""A worker process of the chaos run: a scheduler that steps through its rooms, and watches its free pages."""

from __future__ import annotations

import gc
import os
import queue
import sys
import threading
import time
from contextlib import ExitStack

import attrs

from pdcore.bootstrap import BootstrapServer
from pdcore.children import Parent, brief, run_child
from pdcore.config.auth_key import auth_key
from pdcore.config.records import Config, ControlConfig, LivenessConfig, Timeouts, TransferConfig
from pdcore.config.structuring import Text
from pdcore.decode import DecodeManager
from pdcore.errors import KVTransferError, PDCoreError
from pdcore.layout.kv import KVLayout
from pdcore.model import Deadline, KVPoll, Role, RoomId
from pdcore.pairing.topology import Topology
from pdcore.prefill import KVSender, PrefillManager
from pdcore.rooms.handle import RoomHandle
from pdcore.selection.select import select
from pdcore.testing.chaos import messages as m
from pdcore.testing.faults.memory import WatchedMemory
from pdcore.testing.target import Target

__all__ = ["ChaosScheduler"]

PAGES, SLOTS = 256, 64
LAYOUT = KVLayout.heads(layers=range(4), kv_heads=2, head_dim=64, page_size=16, num_pages=PAGES)
CHUNK = 5
STEP = 0.005
"""Seconds between two steps, and the longest that a command waits."""

WATCH = 0.2
"""Seconds between two looks at the free pages."""


@attrs.define(eq=False)
class ChaosRoom:
    """One room of this worker and what it holds."""

    handle: RoomHandle
    serial: int
    pages: list[int]
    slot: int
    unsent: list[int] = attrs.field(factory=list)


class ChaosScheduler:
    """One side: takes commands, steps through the rooms, reports how each ended."""

    def __init__(
        self,
        manager: PrefillManager | DecodeManager,
        memory: WatchedMemory,
        parent: Parent[m.Command],
        seconds: float,
    ) -> None:
        self._manager = manager
        self._memory = memory
        self._parent = parent
        self._seconds = seconds
        self._running: dict[int, ChaosRoom] = {}
        self._ended: list[ChaosRoom] = []
        self._watch_at = 0.0

    def run(self) -> None:
        """Serve until the parent hangs up."""
        commands: queue.SimpleQueue[m.Command | None] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self._parent, commands), name="commands", daemon=True).start()
        while True:
            try:
                command = commands.get(timeout=STEP)
            except queue.Empty:
                pass
            else:
                if command is None:
                    return
                self._obey(command)
            self.step()

    def step(self) -> None:
        """Send what is due, and see which rooms have ended and what may be reused."""
        for job in list(self._running.values()):
            if job.unsent and isinstance(job.handle, KVSender):
                chunk, job.unsent = job.unsent[:CHUNK], job.unsent[CHUNK:]
                self._memory.fill(job.serial, chunk, job.pages.index(chunk[0]))
                job.handle.send(chunk)
            state = job.handle.poll()
            if state.terminal:
                del self._running[job.handle.room]
                self._ended.append(job)
                self._parent.tell(self._result(job, state))
        self._ended = [job for job in self._ended if not self._reclaim(job)]
        if time.monotonic() >= self._watch_at:
            self._watch_at = time.monotonic() + WATCH
            if touched := self._memory.touched():
                self._parent.tell(m.PagesTouched(touched))

    def held(self) -> int:
        """Return how many pages are not free."""
        return PAGES - self._memory.free[0]

    def _obey(self, command: m.Command) -> None:
        if isinstance(command, m.BeginRoom):
            try:
                self._begin(command)
            except PDCoreError as error:
                self._parent.tell(m.RoomOver(command.room, "refused", brief(error)))
        elif command.room in self._running:
            self._running[command.room].handle.abort()

    def _begin(self, begin: m.BeginRoom) -> None:
        taken = self._memory.take(begin.pages)
        if taken is None:
            self._parent.tell(m.RoomOver(begin.room, "no free pages"))
            return
        (pages, slot), room = taken, RoomId(begin.room)
        deadline = Deadline.after(self._seconds)
        if isinstance(self._manager, PrefillManager):
            self._memory.aux.set(slot, room, {"serial": begin.room})
            sender = self._manager.sender(room, deadline)
            self._running[room] = ChaosRoom(sender, begin.room, pages, slot, list(pages))
            sender.init(len(pages), slot)
        else:
            receiver = self._manager.receiver(begin.bootstrap, room, deadline)
            self._running[room] = ChaosRoom(receiver, begin.room, pages, slot)
            receiver.init()
            receiver.send_metadata(pages, slot)

    def _result(self, job: ChaosRoom, state: KVPoll) -> m.RoomOver:
        failure = job.handle.failure()
        room = job.handle.room
        if failure is not None:
            return m.RoomOver(room, failure.code.value, brief(failure))
        wrong = self._wrong(job) if isinstance(self._manager, DecodeManager) else ""
        return m.RoomOver(room, "", wrong=wrong)

    def _wrong(self, job: ChaosRoom) -> str:
        if pages := self._memory.wrong_pages(job.serial, job.pages):
            return f"{len(pages)} of {len(job.pages)} pages are wrong: {pages[:8]}"
        try:
            found = int(self._memory.aux.get(job.slot, job.handle.room)["serial"])
        except KVTransferError as error:
            return str(error)
        return "" if found == job.serial else f"the aux row is that of room {found}"

    def _reclaim(self, job: ChaosRoom) -> bool:
        if not job.handle.release_safe():
            return False
        job.handle.clear()
        self._memory.give_back(job.pages, job.slot)
        return True


def _read(parent: Parent[m.Command], commands: queue.SimpleQueue[m.Command | None]) -> None:
    while (command := parent.next()) is not None:
        commands.put(command)
    commands.put(None)


def _sockets() -> set[str]:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return {target for link in links if os.path.lexists(link) and "socket" in (target := os.readlink(link))}


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pdcore-")]


def _options(start: m.ChaosWorkerSettings) -> dict[str, object]:
    return {name: Text(value) for name, value in start.options.items()}


def _manager(
    start: m.ChaosWorkerSettings, memory: WatchedMemory, stack: ExitStack
) -> tuple[PrefillManager | DecodeManager, m.WorkerServes]:
    key = auth_key(os.environ.get("PDCORE_AUTH_KEY"))
    config = Config(
        auth_key=key,
        backend=start.backend,
        control=ControlConfig(port=start.control_port),
        timeouts=Timeouts(request=start.deadline),
        liveness=LivenessConfig(interval=0.5, max_failures=4),
        transfer=TransferConfig(staging="always" if start.packed else "auto"),
    )
    backend = select(start.backend, _options(start))
    if start.role == Role.DECODE.value:
        decode = stack.enter_context(DecodeManager(backend, memory.pools, Topology(), config))
        return decode, m.WorkerServes(decode.engine.effective_transport.name)
    bootstrap = stack.enter_context(BootstrapServer(port=start.bootstrap_port, auth_key=key))
    prefill = stack.enter_context(
        PrefillManager(backend, memory.pools, Topology(), bootstrap.address, config)
    )
    ports = (int(address.rpartition(":")[2]) for address in (prefill.address, bootstrap.address))
    return prefill, m.WorkerServes(prefill.engine.effective_transport.name, *ports)


def _serve(start: m.ChaosWorkerSettings, parent: Parent[m.Command]) -> None:
    memory = WatchedMemory(LAYOUT, SLOTS)
    error = ""
    # What an engine's library opens once per process is no leak of ours.
    Target(start.backend, _options(start)).start_engine(Role(start.role)).close()
    before = _sockets()
    with ExitStack() as stack:
        manager, ready = _manager(start, memory, stack)
        parent.tell(ready)
        worker = ChaosScheduler(manager, memory, parent, start.deadline)
        worker.run()
        open_yet = stack.pop_all()
    try:
        open_yet.close()
    except PDCoreError as raised:
        error = brief(raised)
    worker.step()
    gc.collect()
    parent.tell(m.WorkerClosed(worker.held(), _threads(), sorted(_sockets() - before), error))


if __name__ == "__main__":
    sys.exit(run_child(m.ChaosWorkerSettings, m.decode_command, _serve))
