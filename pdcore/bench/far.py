"""The far side of the benchmark: a process with a decode manager and a raw engine over the same pools."""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

from pdcore.bench.load import allocate, pages_of, serve_load
from pdcore.bench.messages import Command, Export, Join, Load, decode_command
from pdcore.decode import DecodeManager
from pdcore.demo.line import ParentLine
from pdcore.demo.messages import Fatal, WorkerSettings
from pdcore.demo.serving import chosen_backend, configuration
from pdcore.host.console import explained
from pdcore.host.machine import find_place
from pdcore.memory.metadata_buffers import MetadataBuffers
from pdcore.model import Deadline, Role, RoomId, new_incarnation
from pdcore.pairing.topology import Topology
from pdcore.rooms.handle import RoomHandle

__all__: list[str] = []


class FarSide:
    """Receives requests; reads the aux row of each, as a decode scheduler must."""

    def __init__(self, manager: DecodeManager, aux: MetadataBuffers, bootstrap: str) -> None:
        self._manager = manager
        self._aux = aux
        self._bootstrap = bootstrap

    def start(self, room: RoomId, slot: int, pages: npt.NDArray[np.int64]) -> RoomHandle:
        receiver = self._manager.receiver(self._bootstrap, room)
        receiver.init()
        receiver.send_metadata(pages, slot)
        return receiver

    def ended(self, room: RoomId, slot: int) -> None:
        self._aux.get(slot, room)

    def finished(self, deadline: Deadline) -> list[RoomId]:
        return self._manager.finished(deadline)


def run(settings: WorkerSettings, line: ParentLine[Command]) -> None:
    """Serve loads until the parent says stop."""
    backend, config = chosen_backend(settings), configuration(settings)
    pools, aux = allocate(settings)
    engine = backend.start_engine(
        role=Role.DECODE,
        incarnation=new_incarnation(),
        host=find_place(config.host, config.advertise).advertised,
        deadline=Deadline.after(config.timeouts.engine_start),
    )
    try:
        with DecodeManager(backend, pools, Topology(), config) as manager:
            join = line.next()
            if not isinstance(join, Join):
                return
            regions = engine.register(pools.regions)
            engine.admit(join.endpoint)
            engine.expect(1)  # raw writes are not announced, and an engine may have to run for them
            line.emit(Export(engine.endpoint(), regions))
            side = FarSide(manager, aux, join.bootstrap)
            while isinstance(load := line.next(), Load):
                pages = pages_of(load, Role.DECODE, settings.num_pages)
                line.emit(serve_load(load, side, pages, settings.deadline))
    finally:
        engine.close()


def main() -> int:
    """Be the far side's process."""
    line = ParentLine(decode_command)
    settings = line.next()
    if not isinstance(settings, WorkerSettings):
        return 2
    try:
        run(settings, line)
    except Exception as error:  # the parent has to tell it, whatever it is
        line.emit(Fatal(str(explained(error))))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
