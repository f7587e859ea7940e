"""The far process: an engine of the same backend, whose memory judges what arrived.

It executes what it is asked, one question at a time, and ends when its parent hangs up.
"""

from __future__ import annotations

import os
import sys

from pdcore.children import Parent, run_child
from pdcore.contract.engine import TransferEngine
from pdcore.errors import PDCoreError
from pdcore.model import Deadline, Role
from pdcore.testing.far import commands as c
from pdcore.testing.far.decode import FarDecode
from pdcore.testing.memory import FAR_GUARD, GUARD, GuardedMemory, SharedMemory, digest
from pdcore.testing.pump import STEP, Pump
from pdcore.testing.target import Target

__all__ = ["FarEngine"]


class FarEngine:
    """Executes commands on one engine at a time. Its memory is kept from one engine to the next."""

    def __init__(self) -> None:
        self._engine: TransferEngine | None = None
        self._pump: Pump | None = None
        self._kept: dict[tuple[int, int], tuple[GuardedMemory, int]] = {}
        self._memory: list[GuardedMemory] = []
        self._fds: list[int] = []

    @property
    def engine(self) -> TransferEngine:
        """The engine that was started last."""
        assert self._engine is not None
        return self._engine

    def execute(self, command: c.EngineCommand) -> object:
        """Execute a command, and return its answer."""
        match command:
            case c.StartEngine():
                return self._start(command)
            case c.AdmitWriter():
                self.engine.admit(command.endpoint)
            case c.RevokeWriter():
                return self.engine.revoke(command.endpoint, Deadline.after(command.seconds)).value
            case c.MemoryDigests():
                return [digest(memory.bytes) for memory in self._memory]
            case c.ReadRegion():
                return self._memory[command.region].bytes.tobytes()
            case c.DamagedGuards():
                damaged = {i: memory.damaged() for i, memory in enumerate(self._memory)}
                return {i: offsets for i, offsets in damaged.items() if offsets}
            case c.StartPump():
                self._start_pump(command)
            case c.StopPump():
                return self._stop_pump()
            case c.ForkEngine():
                return self._fork()
            case c.RegisterAgain():
                self.engine.deregister()
                return self._register()
            case c.DeregisterMemory():
                self.engine.deregister()
            case c.CloseEngine():
                self.engine.close()
        return None

    def _start(self, command: c.StartEngine) -> c.RegisteredEngine:
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

    def _register(self) -> c.RegisteredEngine:
        export = self.engine.register([memory.region for memory in self._memory])
        return c.RegisteredEngine(self.engine.endpoint(), export, self._fds)

    def _start_pump(self, command: c.StartPump) -> None:
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


def serve(_: None, parent: Parent[c.Command]) -> None:
    """Answer questions until there are no more."""
    far = FarEngine()
    decode: FarDecode | None = None
    while (command := parent.next()) is not None:
        try:
            if isinstance(command, c.StartDecode):
                decode, answer = FarDecode(command), None
            elif isinstance(command, c.EngineCommand):
                answer = far.execute(command)
            else:
                assert decode is not None
                answer = decode.execute(command)
        except Exception as error:  # whatever it is, the near side's test shall show it
            parent.refuse(error)
        else:
            parent.answer(answer)


if __name__ == "__main__":
    sys.exit(run_child(type(None), c.decode_command, serve))
