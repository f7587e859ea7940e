"""The prefill process of the demo: it fills pages as a model would, chunk by chunk, and sends them."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack

from pdcore.bootstrap import BootstrapServer
from pdcore.demo.content.expected import aux_values
from pdcore.demo.memory import WorkerMemory
from pdcore.demo.messages import RoomSent, Serve, WorkerSettings
from pdcore.demo.serving import Job, Router, Serving, configuration, ready, worker_main
from pdcore.model import Deadline, Role, RoomId
from pdcore.pairing.topology import DPChoice
from pdcore.prefill import KVSender, PrefillManager
from pdcore.selection.select import Backend

__all__ = ["PrefillServing"]

STEP_SECONDS = 0.001


class PrefillServing(Serving[KVSender]):
    """Computes a prompt's pages (here: from the seed) and hands them to its sender."""

    def __init__(
        self, settings: WorkerSettings, memory: WorkerMemory, router: Router, manager: PrefillManager
    ) -> None:
        super().__init__(settings, memory, router)
        self._manager = manager

    def open(self, request: Serve, deadline: Deadline) -> KVSender:
        sender = self._manager.sender(RoomId(request.room), deadline)
        if self.settings.dp is DPChoice.QUERY and self.settings.topology.unique_rank == 0:
            self._manager.register_dp_rank(sender.room)
        return sender

    def submit(self, job: Job[KVSender]) -> None:
        memory, held = self.memory, job.held
        memory.aux.set(held.slot, job.room, aux_values(self.settings.seed, job.room, job.request.tokens))
        count = len(held.pages)
        job.handle.init(count, held.slot)
        chunk = self.settings.chunk_pages or count
        for first in range(0, count, chunk):
            here = held.pages[first : first + chunk]
            memory.content.fill(memory.pools.arrays, job.room, here, first)
            is_last = first + chunk >= count
            if is_last:
                memory.fill_state(job.room, held)
            job.sent = job.sent or time.monotonic()
            job.handle.send(here, held.state if is_last else None)

    def finished(self, deadline: Deadline) -> list[RoomId]:
        if not self._manager.inline:
            return self._manager.finished(deadline)
        # With inline submission transfers advance when they are polled, as in a scheduler's step.
        for job in self.submitted():
            job.handle.poll()
        return self._manager.finished(deadline.within(STEP_SECONDS))

    def succeeded(self, job: Job[KVSender]) -> RoomSent:
        ended, metric = job.ended, job.handle.metric()
        return RoomSent(job.room, job.sent, ended - metric.transfer, ended, metric.nbytes, metric.entries)


def run(settings: WorkerSettings, backend: Backend, router: Router) -> int:
    """Serve prefill requests until the router says stop; return how many control messages were sent."""
    memory = WorkerMemory(settings, Role.PREFILL)
    with ExitStack() as stack:
        config = configuration(settings)
        address = settings.bootstrap or stack.enter_context(BootstrapServer(auth_key=config.auth_key)).address
        manager = stack.enter_context(
            PrefillManager(backend, memory.pools, settings.topology, address, config)
        )
        router.tell(ready(backend, manager.engine, address))
        PrefillServing(settings, memory, router, manager).run()
    return manager.channel.sent


if __name__ == "__main__":
    sys.exit(worker_main(run))
