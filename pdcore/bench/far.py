"""The far side of the benchmark: a process with a decode manager and a raw engine over the same pools."""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

from pdcore.bench.load import allocate, pages_of, serve_load
from pdcore.bench.messages import Command, Join, Load, RawTarget, decode_command
from pdcore.children import Parent, run_child
from pdcore.decode import DecodeManager
from pdcore.demo.messages import WorkerSettings
from pdcore.demo.serving import chosen_backend, configuration
from pdcore.host.machine import find_place
from pdcore.memory.metadata_buffers import MetadataBuffers
from pdcore.model import Deadline, Role, RoomId, new_incarnation
from pdcore.pairing.topology import Topology
from pdcore.rooms.handle import RoomHandle

__all__: list[str] = []


class DecodeSide:
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


def run(settings: WorkerSettings, parent: Parent[Command]) -> None:
    """Serve loads until the parent hangs up."""
    backend, config = chosen_backend(settings), configuration(settings)
    engine = backend.start_engine(
        role=Role.DECODE,
        incarnation=new_incarnation(),
        host=find_place(config.host, config.advertise).advertised,
        deadline=Deadline.after(config.timeouts.engine_start),
    )
    try:
        pools, aux = allocate(settings, backend.aux_route(engine).device)
        with DecodeManager(backend, pools, Topology(), config) as manager:
            join = parent.next()
            if not isinstance(join, Join):
                return
            regions = engine.register(pools.regions)
            engine.admit(join.endpoint)
            engine.expect(1)  # raw writes are not announced, and an engine may have to run for them
            parent.answer(RawTarget(engine.endpoint(), regions))
            side = DecodeSide(manager, aux, join.bootstrap)
            while isinstance(load := parent.next(), Load):
                pages = pages_of(load, Role.DECODE, settings.num_pages)
                parent.answer(serve_load(load, side, pages, settings.deadline))
    finally:
        engine.close()


if __name__ == "__main__":
    sys.exit(run_child(WorkerSettings, decode_command, run))
