"""The far process: an engine of the same backend, whose memory judges what arrived.

``python -m pdcore.testing.farside`` reads commands on stdin and answers on what was stdout; anything
that an engine prints goes to stderr. It ends with its stdin.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import BinaryIO

import msgspec

from pdcore.contract.engine import TransferEngine
from pdcore.errors import PDCoreError
from pdcore.model import Deadline, Role
from pdcore.testing import commands as c
from pdcore.testing.farroom import FarDecode
from pdcore.testing.memory import FAR_GUARD, GUARD, GuardedMemory, SharedMemory, digest
from pdcore.testing.pump import STEP, Pump
from pdcore.testing.target import Target

LOOK = 0.01
"""Seconds between two looks at memory that is watched."""


class FarSide:
    """Executes commands on one engine at a time. Its memory is kept from one engine to the next."""

    def __init__(self) -> None:
        self._engine: TransferEngine | None = None
        self._decode: FarDecode | None = None
        self._pump: Pump | None = None
        self._kept: dict[tuple[int, int], tuple[GuardedMemory, int]] = {}
        self._memory: list[GuardedMemory] = []
        self._fds: list[int] = []

    @property
    def decode(self) -> FarDecode:
        """The decode manager that was started last."""
        assert self._decode is not None
        return self._decode

    @property
    def engine(self) -> TransferEngine:
        """The engine that was started last."""
        assert self._engine is not None
        return self._engine

    def execute(self, command: c.Command) -> object:
        """Execute a command and return its answer, None if it has none."""
        match command:
            case c.Start():
                return self._start(command)
            case c.Revoke():
                return self.engine.revoke(command.endpoint, Deadline.after(command.seconds)).value
            case c.StopPump():
                return self._stop_pump()
            case c.Deregister():
                self.engine.deregister()
                return self._register()
            case c.Fork():
                return self._fork()
            case c.Digests():
                return self._digests()
            case c.Read():
                return self._memory[command.region].bytes.tobytes()
            case c.Guards():
                damaged = {i: memory.damaged() for i, memory in enumerate(self._memory)}
                return {i: offsets for i, offsets in damaged.items() if offsets}
            case c.WatchRoom():
                return self.decode.watch_room(command)
            case c.PoolDigests():
                return self.decode.digests()
            case c.WatchPools():
                return changes(self.decode.digests, Deadline.after(command.seconds))
            case _:
                self._obey(command)
                return None

    def _obey(
        self,
        command: c.Admit
        | c.Connect
        | c.Close
        | c.Unregister
        | c.Serve
        | c.Receive
        | c.AbortRoom
        | c.ClearRoom
        | c.FillPools
        | c.Retire,
    ) -> None:
        match command:
            case c.Serve():
                self._decode = FarDecode(command)
            case c.Receive():
                self.decode.receive(command)
            case c.AbortRoom():
                self.decode.abort(command.room)
            case c.ClearRoom():
                self.decode.clear(command.room)
            case c.FillPools():
                self.decode.fill(command.seed)
            case c.Retire():
                self.decode.close()
            case c.Admit():
                self.engine.admit(command.endpoint)
            case c.Connect():
                self._connect(command)
            case c.Unregister():
                self.engine.deregister()
            case c.Close():
                self.engine.close()

    def _start(self, command: c.Start) -> c.Started:
        self._engine = Target(command.backend, command.options).start_engine(Role(command.role))
        self._memory, self._fds = [], []
        for i, length in enumerate(command.lengths):
            if (i, length) not in self._kept:
                shared = SharedMemory.make(f"far.{i}", length + 2 * GUARD)
                guarded = GuardedMemory(f"far.{i}", length, FAR_GUARD, shared.bytes)
                self._kept[i, length] = guarded, shared.fd
            memory, fd = self._kept[i, length]
            memory.mend()
            memory.fill(command.seed + i)
            self._memory.append(memory)
            self._fds.append(fd)
        return self._register()

    def _register(self) -> c.Started:
        export = self.engine.register([memory.region for memory in self._memory])
        return c.Started(self.engine.endpoint(), export, self._fds)

    def _connect(self, command: c.Connect) -> None:
        peer = self.engine.connect(command.endpoint, command.export, Deadline.after(STEP))
        self._pump = Pump(self.engine, peer)
        if not self._pump.wait_started(Deadline.after(STEP)):
            raise self._pump.error or TimeoutError("the first write did not end")

    def _stop_pump(self) -> c.Pumped:
        assert self._pump is not None
        if not self._pump.stop(Deadline.after(STEP)):
            raise TimeoutError("the last write did not end")
        return c.Pumped(self._pump.writes, str(self._pump.error or ""))

    def _fork(self) -> str:
        answer, question = os.pipe()
        child = os.fork()
        if not child:
            try:
                self.engine.register([])
                name = "none"
            except PDCoreError as error:
                name = type(error).__name__
            os.write(question, name.encode())
            os._exit(0)
        os.close(question)
        with os.fdopen(answer, "rb") as pipe:
            name = pipe.read().decode()
        os.waitpid(child, 0)
        return name

    def _digests(self) -> list[str]:
        return [digest(memory.bytes) for memory in self._memory]


def changes(look: Callable[[], list[str]], deadline: Deadline) -> bool:
    """Return whether what is looked at changes before the deadline."""
    before, look_again = look(), threading.Event()  # never set: what must not come cannot wake anyone
    while not deadline.expired:
        if look() != before:
            return True
        look_again.wait(LOOK)
    return False


def serve(commands: BinaryIO, answers: BinaryIO) -> None:
    """Execute commands until there are no more."""
    far, decoder = FarSide(), msgspec.json.Decoder(c.Command)
    for line in commands:
        try:
            answer: Mapping[str, object] = {"value": far.execute(decoder.decode(line))}
        except Exception as error:  # whatever it is, the near side's test shall show it
            answer = {"value": None, "error": type(error).__name__, "text": traceback.format_exc()}
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()


def main() -> None:
    """Keep stdout for the answers, and serve."""
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
