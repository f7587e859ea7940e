"""The prefill process of the demo: it fills pages as a model would, chunk by chunk, and sends them."""

from __future__ import annotations

import sys
import time

from pdcore.bootstrap import BootstrapServer
from pdcore.demo.content import aux_values
from pdcore.demo.messages import Sent, Serve, WorkerSettings
from pdcore.demo.serving import Job, Memory, RouterLine, Serving, configuration, ready, worker_main
from pdcore.model import Deadline, Role, RoomId
from pdcore.prefill import KVSender, PrefillManager
from pdcore.selection import Backend
from pdcore.topology import Topology

__all__ = ["PrefillServing"]

STEP_SECONDS = 0.001


class PrefillServing(Serving[KVSender]):
    """Computes a prompt's pages (here: from the seed) and hands them to its sender."""

    def __init__(
        self, settings: WorkerSettings, memory: Memory, line: RouterLine, manager: PrefillManager
    ) -> None:
        super().__init__(settings, memory, line)
        self._manager = manager

    def open(self, request: Serve, deadline: Deadline) -> KVSender:
        return self._manager.sender(RoomId(request.room), deadline)

    def submit(self, job: Job[KVSender]) -> None:
        memory, pages = self.memory, job.pages
        memory.aux.set(job.slot, job.room, aux_values(self.settings.seed, job.room, job.request.tokens))
        job.handle.init(len(pages), job.slot)
        chunk = self.settings.chunk_pages or len(pages)
        for first in range(0, len(pages), chunk):
            here = pages[first : first + chunk]
            memory.content.fill(memory.pools.arrays, job.room, here, first)
            job.sent = job.sent or time.monotonic()
            job.handle.send(here)

    def finished(self, deadline: Deadline) -> list[RoomId]:
        if not self._manager.inline:
            return self._manager.finished(deadline)
        # With inline submission transfers advance when they are polled, as in a scheduler's step.
        for job in self.submitted():
            job.handle.poll()
        return self._manager.finished(deadline.within(STEP_SECONDS))

    def succeeded(self, job: Job[KVSender]) -> Sent:
        ended = job.ended
        return Sent(job.room, job.sent, ended - job.handle.metric().transfer, ended)


def run(settings: WorkerSettings, backend: Backend, line: RouterLine) -> None:
    """Serve prefill requests, with a bootstrap service of our own, until the router says stop."""
    memory = Memory(settings, Role.PREFILL)
    with (
        BootstrapServer() as bootstrap,
        PrefillManager(
            backend, memory.pools, Topology(), bootstrap.address, configuration(settings)
        ) as manager,
    ):
        line.emit(ready(backend, manager.engine, bootstrap.address))
        PrefillServing(settings, memory, line, manager).run()


if __name__ == "__main__":
    sys.exit(worker_main(run))
