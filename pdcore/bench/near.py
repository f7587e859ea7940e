"""The near side of the benchmark: a prefill manager and a raw engine here, a far side over there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.bench.load import allocate, pages_of, serve_load
from pdcore.bench.messages import Command, Join, Load, Loaded
from pdcore.bootstrap import BootstrapServer
from pdcore.children import Child, Reply, decode_reply
from pdcore.contract.engine import Peer, RawWrite, TransferEngine
from pdcore.contract.regions import WriteBatch
from pdcore.demo.content.expected import aux_values
from pdcore.demo.messages import WorkerSettings
from pdcore.demo.serving import chosen_backend, configuration
from pdcore.host.machine import find_place
from pdcore.memory.metadata_buffers import MetadataBuffers
from pdcore.memory.pools import Pools
from pdcore.model import Deadline, Role, RoomId, new_incarnation
from pdcore.pairing.topology import Topology
from pdcore.plan import ItemCopier
from pdcore.prefill import PrefillManager
from pdcore.rooms.handle import RoomHandle

__all__ = ["BenchPair", "FarSide", "another", "paired", "plan_of"]

START_SECONDS = 90.0
STOP_SECONDS = 20.0
AUX = aux_values(0, RoomId(0), 1)


class FarSide(Child[Command, Reply]):
    """The process that plays decode; it ends in order when it is hung up on."""

    def __init__(self, settings: WorkerSettings) -> None:
        super().__init__("the far side of the benchmark", "pdcore.bench.far", settings, decode_reply)


def plan_of(pools: Pools) -> ItemCopier:
    """Return the planner of whole KV pages between two pools of the same layout."""
    kv, pages = pools.table.kv, pools.layout.num_pages
    return ItemCopier("page", [b.item_len for b in pools.layout.buffers], kv, kv, pages, pages)


@attrs.frozen
class BenchPair:
    """Both sides, paired: requests go through the manager, raw writes straight to the far engine."""

    settings: WorkerSettings
    manager: PrefillManager
    pools: Pools
    aux: MetadataBuffers
    engine: TransferEngine
    peer: Peer
    far: FarSide

    def start(self, room: RoomId, slot: int, pages: npt.NDArray[np.int64]) -> RoomHandle:
        """Send a request in one chunk, as a scheduler would."""
        sender = self.manager.sender(room)
        self.aux.set(slot, room, AUX)
        sender.init(len(pages), slot)
        sender.send(pages)
        return sender

    def ended(self, room: RoomId, slot: int) -> None:
        """Do nothing: only decode has something to look at."""

    def finished(self, deadline: Deadline) -> list[RoomId]:
        """Return the rooms that ended, waiting for the first."""
        return self.manager.finished(deadline)

    def serve(self, load: Load) -> Loaded:
        """Serve this side of a load, which the far side serves too."""
        pages = pages_of(load, Role.PREFILL, self.settings.num_pages)
        return serve_load(load, self, pages, self.settings.deadline)

    def far_serves(self, load: Load) -> None:
        """Have the far side start a load."""
        self.far.tell(load)

    def far_served(self, load: Load) -> Loaded:
        """Return what the far side measured, once it has served a load."""
        return self.far.answer(load, Deadline.after(self.settings.deadline))

    def raw(self, load: Load) -> RawWrite:
        """Return the raw write of the first slot's pages: the same bytes as one request, without aux."""
        return self.engine.prepare_raw(self.peer, self.batch(load))

    def batch(self, load: Load) -> WriteBatch:
        """Return the plan of the first slot's pages."""
        here, there = (pages_of(load, role, self.settings.num_pages)[0] for role in Role)
        return plan_of(self.pools)(here, there)


@contextlib.contextmanager
def paired(settings: WorkerSettings) -> Iterator[BenchPair]:
    """Start both sides and connect their raw engines.

    Raises:
        ChildError: the far side did not start; the message is its own.
        PDCoreError: this side did not.
    """
    backend, config = chosen_backend(settings), configuration(settings)
    with contextlib.ExitStack() as stack:
        far = stack.enter_context(FarSide(settings))
        engine = backend.start_engine(
            role=Role.PREFILL,
            incarnation=new_incarnation(),
            host=find_place(config.host, config.advertise).advertised,
            deadline=Deadline.after(config.timeouts.engine_start),
        )
        stack.callback(engine.close)
        pools, aux = allocate(settings, backend.aux_route(engine).device)
        engine.register(pools.regions)
        bootstrap = stack.enter_context(BootstrapServer(auth_key=config.auth_key))
        manager = stack.enter_context(PrefillManager(backend, pools, Topology(), bootstrap.address, config))
        started = Deadline.after(START_SECONDS)
        target = far.ask(Join(engine.endpoint(), bootstrap.address), started)
        peer = engine.connect(target.endpoint, target.regions, Deadline.after(START_SECONDS))
        yield BenchPair(settings, manager, pools, aux, engine, peer, far)
        far.hang_up()
        far.finish(Deadline.after(STOP_SECONDS))


@contextlib.contextmanager
def another(pair: BenchPair) -> Iterator[FarSide]:
    """Start a second far side beside the first; it serves loads as the first does."""
    with FarSide(pair.settings) as far:
        far.ask(Join(pair.engine.endpoint(), pair.manager.bootstrap), Deadline.after(START_SECONDS))
        yield far
        far.hang_up()
        far.finish(Deadline.after(STOP_SECONDS))
