"""All prefill ranks that decode knows: found through bootstrap, asked to pair, paired."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from pdcore.bootstrap import BootstrapClient, RankRecord, ReplicaQuery
from pdcore.bootstrap.record import RankGroup
from pdcore.config import AuthKey, Timeouts
from pdcore.contract.engine import TransferEngine
from pdcore.decode.announcer import Announcer
from pdcore.decode.facts import KnownGroups
from pdcore.decode.group import PrefillGroup, as_failure
from pdcore.decode.revocation import LostWriter, Revocations
from pdcore.decode.source import PrefillSource, indescribable, replaced
from pdcore.errors import EngineError, FailureCode, IncompatiblePeerError, KVTransferError
from pdcore.events import Events, Stage, stage
from pdcore.host.shortage import require_descriptors
from pdcore.managers.liveness import Heartbeats
from pdcore.model import Deadline, Incarnation
from pdcore.pairing import PeerDescription
from pdcore.pairing.misfits import coverage_misfits, pairing_misfits
from pdcore.pairing.topology import DPChoice, dp_rank_of, map_ranks, topology_misfits
from pdcore.wire import Channel, PairReply, PairRequest, Route, overweight

__all__ = ["Sources"]

DIAL_DESCRIPTORS = 8
"""What one connection of the control channel takes, with what watches over it."""

Lost = Callable[[PrefillSource, KVTransferError], None]


class Sources:
    """Groups of prefill ranks by bootstrap address and DP rank, and their ranks by route.

    ``_dp_sizes`` remembers by bootstrap address what tells the DP rank of a room without a look-up.
    The lock guards it, ``_groups``, ``_finding``, ``_sources``, ``_admitting`` and ``_closed``. ``lost`` is
    called on the control thread with a source that could not be paired.
    """

    def __init__(
        self,
        engine: TransferEngine,
        description: PeerDescription,
        timeouts: Timeouts,
        channel: Channel,
        heartbeats: Heartbeats[Route],
        events: Events,
        lost: Lost,
        auth_key: AuthKey | None,
        revocations: Revocations,
    ) -> None:
        self._engine = engine
        self._description = description
        self._timeouts = timeouts
        self._channel = channel
        self._heartbeats = heartbeats
        self._events = events
        self._lost = lost
        self._http = BootstrapClient("decode", auth_key)
        self._revocations = revocations
        self.known = KnownGroups(self._http, timeouts.bootstrap, time.monotonic, self._paired_at)
        self._lock = threading.Lock()
        self._groups: dict[tuple[str, int], PrefillGroup] = {}
        self._finding: set[PrefillGroup] = set()
        self._dp_sizes: dict[str, int] = {}
        self._sources: dict[Route, PrefillSource] = {}
        self._admitting: set[threading.Thread] = set()
        self._closed = False

    def of(self, route: Route) -> PrefillSource | None:
        """Return the source that answers on a route."""
        return self._sources.get(route)

    def all(self) -> list[PrefillSource]:
        """Return all sources."""
        with self._lock:
            return list(self._sources.values())

    def bootstraps(self) -> set[str]:
        """Return the bootstrap addresses that groups were looked for at."""
        with self._lock:
            found = {bootstrap for bootstrap, _ in self._groups}
        return found | self.known.addresses()

    def overdue(self) -> list[PrefillGroup]:
        """Return the groups that did not pair by their deadline, and forget those that are lost."""
        with self._lock:
            lost = {bootstrap for (bootstrap, _), group in self._groups.items() if group.lost}
            if lost:
                self.known.drop(lost)
                self._groups = {key: group for key, group in self._groups.items() if not group.lost}
                known = {bootstrap for bootstrap, _ in self._groups}
                self._dp_sizes = {b: size for b, size in self._dp_sizes.items() if b in known}
            return [group for group in {*self._groups.values(), *self._finding} if group.overdue]

    def find(self, bootstrap: str, query: ReplicaQuery) -> PrefillGroup:
        """Return a group, looking for it if it is not known."""
        with self._lock:
            if query.choice is DPChoice.BY_ROOM and bootstrap in self._dp_sizes:
                query = ReplicaQuery(dp_rank_of(query.room, self._dp_sizes[bootstrap]), query.room)
            key = None if isinstance(query.choice, DPChoice) else (bootstrap, query.choice)
            group = self._groups.get(key) if key else None
            if group is not None and not group.lost:
                return group
            group = PrefillGroup(bootstrap, query, Deadline.after(self._timeouts.pairing))
            if key:
                self._groups[key] = group
            else:
                self._finding.add(group)
        try:
            require_descriptors(DIAL_DESCRIPTORS, f"to look for prefill at {bootstrap}")
            future = self._http.resolve(bootstrap, query, group.deadline.within(self._timeouts.bootstrap))
        except EngineError as shortage:
            future = concurrent.futures.Future()
            future.set_exception(shortage)
        future.add_done_callback(lambda f: self._channel.call(partial(self._found, bootstrap, group, f)))
        return group

    def trouble(self, bootstrap: str) -> str:
        """Return how often in a row a bootstrap service was not reached, and why; "" if it was."""
        return self._http.trouble(bootstrap)

    def drop(self, source: PrefillSource, holds: Callable[[], bool], drained: Callable[[], None]) -> None:
        """Forget a lost source; ``drained`` is called once it is proven that it writes no more.

        ``holds`` tells whether pages are unsafe because of it.
        """
        with self._lock:
            if self._sources.get(source.route) is source:
                del self._sources[source.route]
        self._heartbeats.forget(source.route)
        self._channel.hang_up(source.route, last_words=source.refused)
        if source.description is not None:
            self._revoke(source, source.description, holds, drained)

    def answered(self, source: PrefillSource, reply: PairReply) -> None:
        """Take prefill's answer; the engine admits its writes before any request goes out."""
        incarnation = reply.description.incarnation
        if incarnation != source.identity.incarnation:
            self._lost(source, replaced(source, incarnation))
            return
        misfits = reply.misfits or pairing_misfits(reply.description, self._description)
        if misfits:
            error = IncompatiblePeerError(str(source), misfits)
            self._lost(source, as_failure(FailureCode.INCOMPATIBLE, error))
        elif reply.failure is not None:
            self._lost(source, reply.failure.error())
        else:
            admitting = threading.Thread(
                target=self._admit,
                args=(source, reply.description),
                name=f"pdcore-admit-{incarnation[:8]}",
                daemon=True,
            )
            with self._lock:
                if not self._closed:
                    admitting.start()
                    self._admitting = {admitting, *(t for t in self._admitting if t.is_alive())}

    def end_threads(self, deadline: Deadline) -> None:
        """End the threads that admit new peers, and those that wait for lost ones."""
        with self._lock:
            self._closed = True
            admitting = list(self._admitting)
        self._revocations.close(deadline)
        for thread in admitting:
            thread.join(deadline.remaining())

    def close(self, deadline: Deadline) -> None:
        """End the bootstrap client."""
        self._http.close(deadline)

    def _paired_at(self, bootstrap: str) -> bool:
        with self._lock:
            return any(at == bootstrap and group.ready for (at, _), group in self._groups.items())

    def _found(
        self, bootstrap: str, group: PrefillGroup, future: concurrent.futures.Future[RankGroup]
    ) -> None:
        if future.cancelled():
            return
        error = future.exception()
        with self._lock:
            self._finding.discard(group)
            if error is not None:
                self._dp_sizes.pop(bootstrap, None)
            else:
                replica = future.result().ranks[0].topology
                self._dp_sizes[bootstrap] = replica.dp_size
                group.query = ReplicaQuery(replica.dp_rank, group.query.room)
                known = self._groups.get((bootstrap, replica.dp_rank))
                if known is None or known.lost:
                    self._groups[bootstrap, replica.dp_rank] = group
        if error is not None:
            code = FailureCode.ENGINE if isinstance(error, EngineError) else FailureCode.PEER_LOST
            group.unpaired(as_failure(code, error))
        else:
            try:
                self._dial(group, future.result().ranks)
            except EngineError as shortage:
                group.unpaired(as_failure(FailureCode.ENGINE, shortage))

    def _dial(self, group: PrefillGroup, ranks: Sequence[RankRecord]) -> None:
        ours = self._description
        theirs, units = ranks[0].topology, ours.layout.units
        if topology_misfits(theirs, ours.topology, *units):
            # Pairing refuses it on both sides, and names every other misfit as well. All ranks of the two
            # groups shall hear of it.
            first = ours.topology.unique_rank
            some = ranks[first :: ours.topology.group_size] or ranks[-1:]
            group.found([self._source(rank) for rank in some], [], partial(coverage_misfits, decode=ours))
            return
        sharded = any(component.sharded for component in ours.state)
        mapping = map_ranks(theirs, ours.topology, *units, sharded_state=sharded)
        senders, dummies = (
            [self._source(ranks[rank]) for rank in wanted]
            for wanted in (mapping.prefill_ranks, mapping.dummies)
        )
        group.found(senders, dummies, partial(coverage_misfits, decode=ours))

    def _source(self, record: RankRecord) -> PrefillSource:
        """Return the source of a rank; one that is not known is dialled and asked to pair."""
        old = self._sources.get(Route(record.address.encode()))
        if old is not None and not old.lost:
            if old.identity.incarnation == record.incarnation:
                return old
            self._lost(old, replaced(old, record.incarnation))
        require_descriptors(DIAL_DESCRIPTORS, f"to dial prefill {record.address}")
        source = PrefillSource(record, self._channel.dial(record.address))
        source.subscribe(Announcer(self._events, source, self._description))
        with self._lock:
            self._sources[source.route] = source
        self._heartbeats.track(source.route, time.monotonic(), connected=False)
        request, limit = PairRequest(self._description), self._description.max_message_bytes
        if (size := overweight(request, limit)) is not None:
            self._channel.call(partial(self._lost, source, indescribable(source, size, limit)))
        else:
            self._channel.post(source.route, request)
        return source

    def _admit(self, source: PrefillSource, description: PeerDescription) -> None:
        """Runs on a thread of its own: an earlier pairing with the same writer must be revoked first."""
        try:
            if not self._revocations.finish(description.incarnation, Deadline.after(self._timeouts.pairing)):
                raise KVTransferError(
                    FailureCode.PEER_LOST,
                    f"{source} cannot pair again",
                    "its writes of the earlier pairing have not ended",
                    "look whether that worker is stopped",
                )
            if self._closed:
                return
            needed = self._engine.capabilities.descriptors_per_peer
            require_descriptors(needed, f"to be connected to {source}")
            with stage(self._events, Stage.ADMIT, peer=source.identity):
                self._engine.admit(description.endpoint)
        # An adapter may raise anything; the rooms that wait for the pairing must end.
        except Exception as error:
            self._channel.call(partial(self._lost, source, as_failure(FailureCode.ENGINE, error)))
        else:
            self._pair(source, description)

    def _pair(self, source: PrefillSource, description: PeerDescription) -> None:
        """Note that a source is admitted; one that was lost meanwhile may not write, unless it came again."""
        if source.pair(description):
            return
        with self._lock:
            current = self._sources.get(source.route)
            if current is None or current.lost or current.identity != source.identity:
                self._revoke(source, description, lambda: False, lambda: None)

    def _revoke(
        self,
        source: PrefillSource,
        there: PeerDescription,
        holds: Callable[[], bool],
        drained: Callable[[], None],
    ) -> None:
        lost = LostWriter(source.identity, there.endpoint, there.process, holds, drained)
        self._revocations.start(lost)

    @property
    def lost(self) -> int:
        """How many lost prefill processes are not known to be silent."""
        return len(self._revocations)

    @property
    def forsaken(self) -> int:
        """How many lost prefill processes were taken for silent, unproven."""
        return self._revocations.forsaken

    def unproven(self, writer: Incarnation) -> str | None:
        """Why a lost prefill process is not known to be silent; None if it isn't lost."""
        return self._revocations.because(writer)
