"""The decode process of the demo: it receives pages and compares every byte with what the seed says."""

from __future__ import annotations

import sys

import numpy as np

from pdcore.decode import DecodeManager, KVReceiver
from pdcore.demo.content import aux_values
from pdcore.demo.messages import Received, Serve, WorkerSettings
from pdcore.demo.serving import Job, Memory, RouterLine, Serving, configuration, ready, worker_main
from pdcore.errors import KVTransferError
from pdcore.model import Deadline, Role, RoomId
from pdcore.selection import Backend
from pdcore.topology import Topology

__all__ = ["DecodeServing"]


class DecodeServing(Serving[KVReceiver]):
    """Reserves pages for a prompt, tells prefill where they are, and looks at what has arrived."""

    def __init__(
        self, settings: WorkerSettings, memory: Memory, line: RouterLine, manager: DecodeManager
    ) -> None:
        super().__init__(settings, memory, line)
        self._manager = manager

    def open(self, request: Serve, deadline: Deadline) -> KVReceiver:
        return self._manager.receiver(request.bootstrap, RoomId(request.room), deadline)

    def submit(self, job: Job[KVReceiver]) -> None:
        job.handle.init()
        job.handle.send_metadata(job.pages, job.slot)

    def finished(self, deadline: Deadline) -> list[RoomId]:
        return self._manager.finished(deadline)

    def succeeded(self, job: Job[KVReceiver]) -> Received:
        verdict = self.memory.content.verify(self.memory.pools.arrays, job.room, job.pages)
        wrong = [f"{verdict.first}; {verdict.wrong_pages} pages differ"] if verdict.first else []
        if verdict.digest != verdict.expected_digest and not wrong:
            wrong = [f"digest {verdict.digest:016x} instead of {verdict.expected_digest:016x}"]
        wrong += self._aux_misfits(job)
        return Received(
            job.room,
            job.ended,
            verdict.pages,
            verdict.nbytes,
            1,
            f"{verdict.digest:016x}",
            f"{verdict.expected_digest:016x}",
            "; ".join(wrong),
        )

    def _aux_misfits(self, job: Job[KVReceiver]) -> list[str]:
        try:
            found = self.memory.aux.get(job.slot, job.room)
        except KVTransferError as error:
            return [f"aux slot {job.slot}: {error}"]
        expected = aux_values(self.settings.seed, job.room, job.request.tokens)
        return [
            f"aux field {name}: {found[name].tolist()} instead of {value.tolist()}"
            for name, value in expected.items()
            if not np.array_equal(found[name], value)
        ]


def run(settings: WorkerSettings, backend: Backend, line: RouterLine) -> None:
    """Serve decode requests until the router says stop."""
    memory = Memory(settings, Role.DECODE)
    with DecodeManager(backend, memory.pools, Topology(), configuration(settings)) as manager:
        line.emit(ready(backend, manager.engine))
        DecodeServing(settings, memory, line, manager).run()


if __name__ == "__main__":
    sys.exit(worker_main(run))
