"""The decode process of the demo: it receives pages and compares every byte with what the seed says."""

from __future__ import annotations

import sys

import numpy as np

from pdcore.decode import DecodeManager, KVReceiver
from pdcore.demo.content.expected import aux_values
from pdcore.demo.memory import WorkerMemory
from pdcore.demo.messages import RoomReceived, Serve, WorkerSettings
from pdcore.demo.serving import Job, Router, Serving, configuration, ready, worker_main
from pdcore.errors import KVTransferError
from pdcore.model import Deadline, Role, RoomId
from pdcore.selection.select import Backend

__all__ = ["DecodeServing"]


class DecodeServing(Serving[KVReceiver]):
    """Reserves pages for a prompt, tells prefill where they are, and looks at what has arrived."""

    def __init__(
        self, settings: WorkerSettings, memory: WorkerMemory, router: Router, manager: DecodeManager
    ) -> None:
        super().__init__(settings, memory, router)
        self._manager = manager

    def open(self, request: Serve, deadline: Deadline) -> KVReceiver:
        return self._manager.receiver(request.bootstrap, RoomId(request.room), deadline)

    def submit(self, job: Job[KVReceiver]) -> None:
        request, held, memory = job.request, job.held, self.memory
        memory.content.fill(memory.pools.arrays, job.room, held.pages[: request.held])
        job.handle.init(self.settings.dp)
        prefix = request.held * self.settings.page_size
        job.handle.send_metadata(held.pages[request.held :], held.slot, held.state, prefix)

    def finished(self, deadline: Deadline) -> list[RoomId]:
        return self._manager.finished(deadline)

    def succeeded(self, job: Job[KVReceiver]) -> RoomReceived:
        verdict, held = self.memory.verify(job.room, job.held), job.request.held
        wrong = [f"{verdict.first}; {verdict.wrong} items differ"] if verdict.first else []
        if verdict.digest != verdict.expected_digest and not wrong:
            wrong = [f"digest {verdict.digest:016x} instead of {verdict.expected_digest:016x}"]
        wrong += self._aux_misfits(job)
        return RoomReceived(
            job.room,
            job.ended,
            len(job.held.pages) - held,
            verdict.nbytes - held * self.memory.pools.layout.page_bytes,
            1,
            f"{verdict.digest:016x}",
            f"{verdict.expected_digest:016x}",
            "; ".join(wrong),
        )

    def _aux_misfits(self, job: Job[KVReceiver]) -> list[str]:
        slot = job.held.slot
        try:
            found = self.memory.aux.get(slot, job.room)
        except KVTransferError as error:
            return [f"aux slot {slot}: {error}"]
        expected = aux_values(self.settings.seed, job.room, job.request.tokens)
        return [
            f"aux field {name}: {found[name].tolist()} instead of {value.tolist()}"
            for name, value in expected.items()
            if not np.array_equal(found[name], value)
        ]


def run(settings: WorkerSettings, backend: Backend, router: Router) -> int:
    """Serve decode requests until the router says stop; return how many control messages were sent."""
    memory = WorkerMemory(settings, Role.DECODE)
    with DecodeManager(backend, memory.pools, settings.topology, configuration(settings)) as manager:
        router.tell(ready(backend, manager.engine))
        DecodeServing(settings, memory, router, manager).run()
    return manager.channel.sent


if __name__ == "__main__":
    sys.exit(worker_main(run))
