"""A prefill or decode rank: ``python -m gpu.worker``."""

from __future__ import annotations

import sys
from functools import partial

from gpu import messages as m
from gpu.queues import Done, queue_on
from gpu.tensors import Tensors
from pdcore import Config, Deadline, DecodeManager, PrefillManager, RoomId, Timeouts, Topology, select
from pdcore.children import Parent, run_child
from pdcore.config.records import LivenessConfig, TransferConfig
from pdcore.model import CPU, Device, DeviceKind
from pdcore.rooms.handle import RoomHandle

SECONDS = 20.0


class Worker:
    """One manager and its pools."""

    def __init__(self, spec: m.WorkerSpec) -> None:
        config = Config(
            transfer=TransferConfig(verify=spec.verify),
            timeouts=Timeouts(request=SECONDS),
            liveness=LivenessConfig(interval=0.2, max_failures=10),
        )
        on = Device(DeviceKind.CUDA) if "intra_nvlink" in spec.backend else CPU
        self.tensors = Tensors(spec.device, spec.dtype, on)
        self._queue = queue_on(spec.device)
        self._last: Done | None = None
        self._rooms: dict[int, RoomHandle] = {}
        backend, pools = select(spec.backend), self.tensors.pools
        self.manager: PrefillManager | DecodeManager = (
            PrefillManager(backend, pools, Topology(), spec.bootstrap, config)
            if spec.role == "prefill"
            else DecodeManager(backend, pools, Topology(), config)
        )

    def execute(self, command: m.Command) -> object:
        """Execute a command and return its answer."""
        match command:
            case m.Started():
                return str(self.manager.engine.effective_transport)
            case m.Wait(room):
                return self._ended(self._rooms[room])
            case m.State(room):
                return self._rooms[room].poll().name
            case m.Look(seed, sources, pages):
                return self.tensors.look(seed, sources, pages)
            case m.Token(room):
                return int(self.tensors.aux.get(room % self.tensors.aux.slots, RoomId(room))["token"])
            case m.Clear(room):
                self._rooms.pop(room).clear()
            case _:
                self._obey(command)
        return None

    def _obey(self, command: m.Fill | m.FillLater | m.OpenGate | m.Send | m.Receive) -> None:
        match command:
            case m.Fill(seed, pages):
                self._queue.put(partial(self.tensors.fill, seed, pages))
                self._queue.let_go()
            case m.FillLater(seed, pages, behind):
                if behind == "gate":
                    self._queue.hold()
                else:
                    self._queue.work_long()
                self._queue.put(partial(self.tensors.fill, seed, pages))
                self._last = self._queue.mark()
            case m.OpenGate():
                self._queue.let_go()
            case m.Send():
                self._send(command)
            case m.Receive(room, pages, bootstrap):
                assert isinstance(self.manager, DecodeManager)
                receiver = self.manager.receiver(bootstrap, RoomId(room))
                receiver.init()
                receiver.send_metadata(pages, room % self.tensors.aux.slots)
                self._rooms[room] = receiver

    def _send(self, command: m.Send) -> None:
        assert isinstance(self.manager, PrefillManager)
        slot = command.room % self.tensors.aux.slots
        self.tensors.aux.set(slot, RoomId(command.room), {"token": command.token})
        sender = self.manager.sender(RoomId(command.room))
        sender.init(len(command.pages), slot)
        sender.send(command.pages, ready=self._last if command.ready else None)
        self._rooms[command.room] = sender

    def _ended(self, room: RoomHandle) -> m.Ended:
        status = room.wait(Deadline.after(SECONDS + 10))
        failure, safe = room.failure(), room.release_safe()
        return m.Ended(status.name, str(failure or ""), safe, "" if safe else room.unsafe_because())


def run(spec: m.WorkerSpec, parent: Parent[m.Command]) -> None:
    """Serve until the parent hangs up."""
    worker = Worker(spec)
    with worker.manager:
        while (command := parent.next()) is not None:
            try:
                parent.answer(worker.execute(command))
            except Exception as error:  # whatever it is, the test shall show it
                parent.refuse(error)


if __name__ == "__main__":
    sys.exit(run_child(m.WorkerSpec, m.decode_command, run))
