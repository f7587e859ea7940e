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
from pdcore.config.auth_key import auth_key
from pdcore.config.records import Config, ControlConfig, LivenessConfig, Timeouts
from pdcore.config.structuring import Text
from pdcore.decode import DecodeManager
from pdcore.demo.line import ParentLine
from pdcore.errors import KVTransferError, PDCoreError
from pdcore.layout.kv import KVLayout
from pdcore.model import Deadline, KVPoll, Role, RoomId
from pdcore.pairing.topology import Topology
from pdcore.prefill import KVSender, PrefillManager
from pdcore.rooms.handle import RoomHandle
from pdcore.selection.select import select
from pdcore.testing.chaos import messages as m
from pdcore.testing.faults.memory import Memory
from pdcore.testing.target import Target

__all__ = ["main"]

PAGES, SLOTS = 256, 64
LAYOUT = KVLayout.heads(layers=range(4), kv_heads=2, head_dim=64, page_size=16, num_pages=PAGES)
CHUNK = 5
STEP = 0.005
"""Seconds between two steps, and the longest that a command waits."""

WATCH = 0.2
"""Seconds between two looks at the free pages."""

ERROR_CHARACTERS = 900  # keeps an event below PIPE_BUF


@attrs.define(eq=False)
class Job:
    """One room of this worker and what it holds."""

    handle: RoomHandle
    serial: int
    pages: list[int]
    slot: int
    unsent: list[int] = attrs.field(factory=list)


class Worker:
    """One side: takes commands, steps through the rooms, reports how each ended."""

    def __init__(
        self,
        manager: PrefillManager | DecodeManager,
        memory: Memory,
        line: ParentLine[m.Command],
        start: m.Start,
    ) -> None:
        self._manager = manager
        self._memory = memory
        self._line = line
        self._start = start
        self._running: dict[int, Job] = {}
        self._ended: list[Job] = []
        self._watch_at = 0.0

    def run(self) -> None:
        """Serve until told to stop, or the parent is gone."""
        commands: queue.SimpleQueue[m.Command | None] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self._line, commands), name="commands", daemon=True).start()
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
                self._line.emit(self._result(job, state))
        self._ended = [job for job in self._ended if not self._reclaim(job)]
        if time.monotonic() >= self._watch_at:
            self._watch_at = time.monotonic() + WATCH
            if touched := self._memory.touched():
                self._line.emit(m.Touched(touched))

    def books(self) -> m.Books:
        """Return how many rooms are open, and how many not released."""
        return m.Books(len(self._running), len(self._ended))

    def held(self) -> int:
        """Return how many pages are not free."""
        return PAGES - self._memory.free[0]

    def _obey(self, command: m.Command) -> None:
        if isinstance(command, m.Begin):
            try:
                self._begin(command)
            except PDCoreError as error:
                self._line.emit(m.Ended(command.room, "refused", str(error)[:ERROR_CHARACTERS]))
        elif isinstance(command, m.Abort) and command.room in self._running:
            self._running[command.room].handle.abort()
        elif isinstance(command, m.Account):
            self._line.emit(self.books())

    def _begin(self, begin: m.Begin) -> None:
        taken = self._memory.take(begin.pages)
        if taken is None:
            self._line.emit(m.Ended(begin.room, "no free pages"))
            return
        (pages, slot), room = taken, RoomId(begin.room)
        deadline = Deadline.after(self._start.deadline)
        if isinstance(self._manager, PrefillManager):
            self._memory.aux.set(slot, room, {"serial": begin.room})
            sender = self._manager.sender(room, deadline)
            self._running[room] = Job(sender, begin.room, pages, slot, list(pages))
            sender.init(len(pages), slot)
        else:
            receiver = self._manager.receiver(begin.bootstrap, room, deadline)
            self._running[room] = Job(receiver, begin.room, pages, slot)
            receiver.init()
            receiver.send_metadata(pages, slot)

    def _result(self, job: Job, state: KVPoll) -> m.Ended:
        failure = job.handle.failure()
        room = job.handle.room
        if failure is not None:
            return m.Ended(room, failure.code.value, str(failure)[:ERROR_CHARACTERS])
        wrong = self._wrong(job) if isinstance(self._manager, DecodeManager) else ""
        return m.Ended(room, "", wrong=wrong)

    def _wrong(self, job: Job) -> str:
        if pages := self._memory.wrong_pages(job.serial, job.pages):
            return f"{len(pages)} of {len(job.pages)} pages are wrong: {pages[:8]}"
        try:
            found = int(self._memory.aux.get(job.slot, job.handle.room)["serial"])
        except KVTransferError as error:
            return str(error)
        return "" if found == job.serial else f"the aux row is that of room {found}"

    def _reclaim(self, job: Job) -> bool:
        if not job.handle.release_safe():
            return False
        job.handle.clear()
        self._memory.give_back(job.pages, job.slot)
        return True


def _read(line: ParentLine[m.Command], commands: queue.SimpleQueue[m.Command | None]) -> None:
    command = line.next()
    while command is not None and not isinstance(command, m.Stop):
        commands.put(command)
        command = line.next()
    commands.put(None)


def _sockets() -> set[str]:
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return {target for link in links if os.path.lexists(link) and "socket" in (target := os.readlink(link))}


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pdcore-")]


def _options(start: m.Start) -> dict[str, object]:
    return {name: Text(value) for name, value in start.options.items()}


def _manager(
    start: m.Start, memory: Memory, stack: ExitStack
) -> tuple[PrefillManager | DecodeManager, m.Ready]:
    key = auth_key(os.environ.get("PDCORE_AUTH_KEY"))
    config = Config(
        auth_key=key,
        backend=start.backend,
        control=ControlConfig(port=start.control_port),
        timeouts=Timeouts(request=start.deadline),
        liveness=LivenessConfig(interval=0.5, max_failures=4),
    )
    backend = select(start.backend, _options(start))
    if start.role == Role.DECODE.value:
        decode = stack.enter_context(DecodeManager(backend, memory.pools, Topology(), config))
        return decode, m.Ready(decode.engine.effective_transport.name)
    bootstrap = stack.enter_context(BootstrapServer(port=start.bootstrap_port, auth_key=key))
    prefill = stack.enter_context(
        PrefillManager(backend, memory.pools, Topology(), bootstrap.address, config)
    )
    ports = (int(address.rpartition(":")[2]) for address in (prefill.address, bootstrap.address))
    return prefill, m.Ready(prefill.engine.effective_transport.name, *ports)


def _serve(start: m.Start, line: ParentLine[m.Command]) -> m.Closed:
    memory = Memory(LAYOUT, SLOTS)
    error = ""
    # What an engine's library opens once per process is no leak of ours.
    Target(start.backend, _options(start)).start_engine(Role(start.role)).close()
    before = _sockets()
    with ExitStack() as stack:
        manager, ready = _manager(start, memory, stack)
        line.emit(ready)
        worker = Worker(manager, memory, line, start)
        worker.run()
        open_yet = stack.pop_all()
    try:
        open_yet.close()
    except PDCoreError as raised:
        error = str(raised)[:ERROR_CHARACTERS]
    worker.step()
    gc.collect()
    return m.Closed(worker.held(), _threads(), sorted(_sockets() - before), error)


def main() -> int:
    """Be a worker process."""
    line: ParentLine[m.Command] = ParentLine(m.decode_command)
    start = line.next()
    if not isinstance(start, m.Start):
        return 2
    try:
        closed = _serve(start, line)
    except PDCoreError as error:
        line.emit(m.Fatal(str(error)[:ERROR_CHARACTERS]))
        return 1
    line.emit(closed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
