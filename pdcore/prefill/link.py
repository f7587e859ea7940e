"""One decode rank as prefill sees it: the engine's peer, how to plan for it, and its lanes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pdcore.contract.backend import StatePlan, StateRequest
from pdcore.contract.budget import EntryBudget
from pdcore.contract.engine import Peer, TransferEngine
from pdcore.contract.regions import WriteBatch
from pdcore.errors import IncompatiblePeerError, Misfit, PlanError
from pdcore.host.process import ProcessIdentity
from pdcore.memory.pools import Pools
from pdcore.memory.region_table import RegionTable
from pdcore.model import AuxTransport, Deadline, PeerIdentity, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.misfits import aux_writer_misfits, chosen_aux_transport
from pdcore.pairing.topology import Topology, map_ranks
from pdcore.plan import AuxCopier, IndexArray, KVCopier, plan_state
from pdcore.prefill.lanes.lane import Lane
from pdcore.prefill.lanes.pace import Pace
from pdcore.prefill.lanes.slots import PeerSlots
from pdcore.prefill.lanes.turns import Outbox, Soon
from pdcore.protocol.chunk import TransferKVChunk
from pdcore.wire import RequestMetadata, Route

__all__ = ["PeerLink"]


class PeerLink:
    """A decode rank that asked to be paired, with its lanes. ``connect`` runs on the first of them."""

    def __init__(
        self,
        route: Route,
        ours: PeerDescription,
        description: PeerDescription,
        engine: TransferEngine,
        lanes: int,
        soon: Soon,
        slots: PeerSlots | None = None,
    ) -> None:
        self.route = route
        self.description = description
        sharded = any(component.sharded for component in description.state)
        groups = ours.topology, description.topology
        self._aux_rank = map_ranks(*groups, *description.layout.units, sharded_state=sharded).aux_rank
        self._carries_aux = ours.topology.unique_rank == self._aux_rank
        self.identity = PeerIdentity(description.role, description.incarnation, description.address)
        self.budget = EntryBudget(engine.capabilities.max_outstanding_entries)
        self.aux_transport = chosen_aux_transport(ours, description)
        self.lost = False
        self.slots = slots
        self._engine = engine
        self._peer: Peer | None = None
        self._kv: KVCopier | None = None
        self._aux: AuxCopier | None = None
        self._state: list[Callable[[IndexArray, IndexArray], WriteBatch]] = []
        name = description.incarnation[:8]
        page_bytes = description.layout.page_bytes
        can = engine.capabilities
        here = soon if can.prompt or can.asynchronous else None
        self._outboxes = [
            Outbox(Lane(f"{name}-{n}"), page_bytes, Pace(can.entry_cost), here) for n in range(lanes)
        ]

    @property
    def peer(self) -> Peer:
        """The engine's peer, once ready."""
        assert self._peer is not None
        return self._peer

    @property
    def process(self) -> ProcessIdentity | None:
        """Its process, if that is known."""
        return self.description.process

    def outbox(self, room: RoomId) -> Outbox:
        """The outbox of a room: always the same, so that its chunks keep their order."""
        return self._outboxes[room % len(self._outboxes)]

    def connect(
        self,
        topology: Topology,
        pools: Pools,
        state_plan: Callable[[StateRequest], StatePlan | None],
        deadline: Deadline,
    ) -> None:
        """Connect the engine and prepare the planners; ``topology`` is this prefill rank's.

        Raises:
            EngineError: the engine cannot reach the peer.
            IncompatiblePeerError: its regions or state are not what its description says.
        """
        there = self.description
        table = RegionTable.of(there.layout, there.state, there.aux_memory, there.aux_slots, there.staging)
        self._state = self._plan_state(topology, pools, table, state_plan)
        misfits = aux_writer_misfits(there.aux, self._aux_rank)
        if misfits:
            raise IncompatiblePeerError(str(self.identity), misfits)
        peer = self._engine.connect(there.endpoint, there.regions, deadline)
        if wrong := table.differing(peer.regions):
            self._engine.disconnect(peer)
            misfit = Misfit(
                "regions", f"{len(table.expected)} expected", f"{len(peer.regions)}: {', '.join(wrong[:2])}",
                "register the pools that the layout describes",
            )  # fmt: skip
            raise IncompatiblePeerError(str(self.identity), [misfit])
        here = pools.table
        self._kv = KVCopier(topology, there.topology, pools.layout, there.layout, here.kv, table.kv)
        if (
            pools.aux
            and self.aux_transport is AuxTransport.ENGINE
            and self._carries_aux
            and there.aux_memory is not None
        ):
            forms, slots = (pools.aux.form, there.aux_memory), (pools.aux.slots, there.aux_slots)
            self._aux = AuxCopier(forms, here.aux, table.aux, *slots)
        self._peer = peer

    def _plan_state(
        self,
        topology: Topology,
        pools: Pools,
        table: RegionTable,
        state_plan: Callable[[StateRequest], StatePlan | None],
    ) -> list[Callable[[IndexArray, IndexArray], WriteBatch]]:
        copiers, misfits = [], []
        rows = zip(pools.state, self.description.state, pools.table.state, table.state, strict=True)
        for pool, remote, local_regions, remote_regions in rows:
            request = StateRequest(
                pool.component,
                remote,
                local_regions,
                remote_regions,
                topology,
                self.description.topology,
                pools.layout.attention,
            )
            plan = state_plan(request) or plan_state(request)
            if plan.copier is None:
                kind = pool.component.kind
                misfits.append(Misfit(f"state {kind!r}", "see reason", plan.refusal, f"make {kind!r} match"))
            else:
                copiers.append(plan.copier)
        if misfits:
            raise IncompatiblePeerError(str(self.identity), misfits)
        return copiers

    def plan(self, chunk: TransferKVChunk, wanted: RequestMetadata) -> list[WriteBatch]:
        """Return the copies of one chunk: pages, and with the last chunk state and aux.

        Raises:
            PlanError: index lists differ in length or leave a pool.
        """
        assert self._kv is not None
        batches = [self._kv(chunk.pages, chunk.start, wanted.pages, wanted.decode_prefix_len)]
        if chunk.is_last:
            if len(chunk.state_indices) != len(self._state) or len(wanted.state_indices) != len(self._state):
                raise PlanError(
                    "the state index lists do not match the state components",
                    f"{len(self._state)} components, {len(chunk.state_indices)} lists from prefill, "
                    f"{len(wanted.state_indices)} from decode",
                    "hand in one index list per component on both sides",
                )
            rows = zip(self._state, chunk.state_indices, wanted.state_indices, strict=True)
            batches += [self._proven(copy(local, remote)) for copy, local, remote in rows]
            if self._aux is not None and chunk.aux_index is not None and wanted.aux_index is not None:
                batches.append(self._aux(np.array([chunk.aux_index]), np.array([wanted.aux_index])))
        return batches

    def _proven(self, batch: WriteBatch) -> WriteBatch:
        # A third party may have planned it: alone it fails alone, not with what it is shipped with.
        batch.prove_inside(self._engine.region_lengths, self.peer.region_lengths)
        return batch

    def close(self) -> None:
        """Let the lanes end after what they hold; the last job disconnects the engine. Idempotent."""
        for outbox in self._outboxes:
            outbox.close(self._disconnect if outbox is self._outboxes[0] else None)

    @property
    def ended(self) -> bool:
        """Whether all lanes have ended."""
        return all(outbox.lane.ended for outbox in self._outboxes)

    def join(self, deadline: Deadline) -> bool:
        """Wait for the lanes; return whether all ended before the deadline."""
        return all(outbox.lane.join(deadline) for outbox in self._outboxes)

    def _disconnect(self) -> None:
        if self._peer is not None:
            self._engine.disconnect(self._peer)
