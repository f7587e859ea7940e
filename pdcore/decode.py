"""DecodeManager: pairs with prefill ranks on first use, and receives each request's KV cache."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import threading
import time
from functools import partial

from pdcore.bootstrap import BootstrapClient
from pdcore.bootstrap.record import RankGroup
from pdcore.config import Config
from pdcore.errors import (
    FailureCode,
    IncompatiblePeerError,
    KVTransferError,
    PDCoreError,
)
from pdcore.manager import Manager
from pdcore.metadata import AuxDataCodec
from pdcore.model import Deadline, Generation, Role, RoomId
from pdcore.outcome import Quiescence
from pdcore.pairing import pairing_misfits
from pdcore.pools import Pools
from pdcore.receiver import KVReceiver
from pdcore.selection import Backend
from pdcore.source import PrefillSource
from pdcore.topology import Topology, map_ranks
from pdcore.wire import (
    Abort,
    AuxRow,
    Bye,
    Heartbeat,
    Message,
    PairReply,
    PairRequest,
    Released,
    RequestMetadata,
    RoomStatus,
    Route,
)

__all__ = ["DecodeManager"]

REVOKE_STEP = 1.0
"""Seconds after which a revocation that is not through looks whether the manager was closed."""

_log = logging.getLogger("pdcore.decode")


class DecodeManager(Manager):
    """The decode side of one rank. Dials out only: it listens on no port.

    The lock guards ``_sources``, ``_routes``, ``_receivers`` and ``_draining``.

    Raises:
        What :class:`~pdcore.manager.Manager` raises.
    """

    def __init__(
        self, backend: Backend, pools: Pools, topology: Topology, config: Config | None = None
    ) -> None:
        super().__init__(Role.DECODE, backend, pools, topology, config or Config())
        self._lock = threading.Lock()
        self._sources: dict[tuple[str, int], PrefillSource] = {}
        self._routes: dict[Route, PrefillSource] = {}
        self._receivers: dict[RoomId, KVReceiver] = {}
        self._draining: list[KVReceiver] = []
        self._revoking: list[threading.Thread] = []
        self._mapping = map_ranks(topology)
        self._aux_codec = AuxDataCodec(pools.aux) if pools.aux else None
        self._description = self.describe(f"{self.config.host} pid {os.getpid()}")
        self._http = BootstrapClient("decode")
        self.channel.start()

    def receiver(self, bootstrap: str, room: RoomId, deadline: Deadline | None = None) -> KVReceiver:
        """Open a room whose prefill is registered at the bootstrap service ``bootstrap`` (host:port).

        The deadline defaults to ``timeouts.request`` from now; prefill gets what is left of it.

        Raises:
            RoomError: the room is open already, or the manager is closed.
        """
        self._check_open()
        record = self.rooms.open(room, deadline or Deadline.after(self.config.timeouts.request))
        receiver = KVReceiver(self, record, bootstrap, self._mapping.required_responses)
        with self._lock:
            self._receivers[room] = receiver
        return receiver

    # --- what receivers ask ----------------------------------------------------------------

    def source(self, bootstrap: str, prefill_dp_rank: int) -> PrefillSource:
        """Return the pairing with a prefill rank, begun if need be."""
        key = (bootstrap, prefill_dp_rank)
        with self._lock:
            source = self._sources.get(key)
            if source is not None and not source.lost:
                return source
            deadline = Deadline.after(self.config.timeouts.pairing)
            source = self._sources[key] = PrefillSource(bootstrap, prefill_dp_rank, deadline)
        found = self._http.resolve(
            bootstrap, prefill_dp_rank, deadline.within(self.config.timeouts.bootstrap)
        )
        found.add_done_callback(lambda f: self.channel.call(partial(self._found, source, f)))
        return source

    def request(self, source: PrefillSource, wanted: RequestMetadata) -> None:
        """Post a request to a paired prefill rank."""
        if source.route is not None:
            self.channel.post(source.route, wanted)

    def abandon(self, source: PrefillSource, abort: Abort) -> None:
        """Tell prefill that a request was given up."""
        if source.route is not None:
            self.channel.post(source.route, abort)

    def forget(self, receiver: KVReceiver) -> None:
        """Free the id of a room that was cleared; one that is not drained stays known until it is."""
        with self._lock:
            if self._receivers.get(receiver.room) is receiver:
                del self._receivers[receiver.room]
                if not receiver.release_safe():
                    self._draining.append(receiver)

    # --- on the control thread -------------------------------------------------------------

    def _found(self, source: PrefillSource, future: concurrent.futures.Future[RankGroup]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            parts = error if isinstance(error, PDCoreError) else None
            self._lose_source(
                source,
                KVTransferError(
                    FailureCode.PEER_LOST,
                    parts.happened if parts else f"{source} was not found",
                    parts.there_is if parts else repr(error),
                    parts.to_do if parts else "look at the bootstrap service",
                ),
                drained=True,
            )
            return
        wanted = self._mapping.prefill_ranks[0]
        group = future.result().ranks
        rank = group[min(wanted, len(group) - 1)]
        route = self.channel.dial(rank.address)
        if source.asked(route):
            with self._lock:
                self._routes[route] = source
            self.heartbeats.track(route, time.monotonic())
            self.channel.post(route, PairRequest(self._description))

    def _on_message(self, route: Route, message: Message) -> None:
        source = self._routes.get(route)
        if source is None:
            self.channel.counts["stale"] += 1
        elif isinstance(message, RoomStatus):
            receiver = self._known(source, message.room, message.generation)
            if receiver is not None:
                receiver.on_status(message)
        elif isinstance(message, AuxRow):
            self._on_aux(source, message)
        elif isinstance(message, Heartbeat):
            self.heartbeats.heard(route, time.monotonic())
            if source.ready:
                self.backend.heartbeat_success(source.identity)
        elif isinstance(message, Released):
            receiver = self._known(source, message.room, message.generation)
            if receiver is not None:
                receiver.drained()
        elif isinstance(message, PairReply):
            self._on_reply(source, message)
        elif isinstance(message, Bye):
            why = "it shut down in order" if message.drained else "it had lost this decode worker"
            self._lose(route, why, drained=message.drained)
        else:
            self.channel.counts["unexpected"] += 1

    def _known(self, source: PrefillSource, room: RoomId, generation: Generation) -> KVReceiver | None:
        receiver = self._receivers.get(room)
        for candidate in (receiver, *self._draining):
            if candidate is not None and candidate.is_for(source, room, generation):
                return candidate
        self.channel.counts["stale"] += 1
        return None

    def _on_aux(self, source: PrefillSource, message: AuxRow) -> None:
        receiver = self._known(source, message.room, message.generation)
        if receiver is None or self._aux_codec is None or receiver.aux_slot is None:
            return
        try:
            self._aux_codec.decode(receiver.aux_slot, message.row)
        except PDCoreError as error:
            failure = KVTransferError(FailureCode.AUX, error.happened, error.there_is, error.to_do)
            receiver.give_up(failure)

    def _on_reply(self, source: PrefillSource, reply: PairReply) -> None:
        misfits = reply.misfits or pairing_misfits(reply.description, self._description)
        if misfits:
            error = IncompatiblePeerError(str(source), misfits)
            failure = KVTransferError(FailureCode.INCOMPATIBLE, error.happened, error.there_is, error.to_do)
            self._lose_source(source, failure, drained=True)
        elif reply.failure is not None:
            self._lose_source(source, reply.failure.error(), drained=True)
        else:
            self.engine.admit(reply.description.endpoint)
            source.pair(reply.description)

    def _lose(self, route: Route, why: str, *, drained: bool) -> None:
        source = self._routes.get(route)
        if source is None:
            self.heartbeats.forget(route)
            return
        self._lose_source(
            source,
            KVTransferError(
                FailureCode.PEER_LOST, f"lost {source}", why, "send the request to another prefill worker"
            ),
            drained=drained,
        )

    def _lose_source(self, source: PrefillSource, failure: KVTransferError, *, drained: bool) -> None:
        if not source.lose(failure):
            return
        _log.warning("%s", failure)
        route = source.route
        with self._lock:
            key = (source.bootstrap, source.dp_rank)
            if self._sources.get(key) is source:
                del self._sources[key]
            if route is not None:
                self._routes.pop(route, None)
            affected = [r for r in (*self._receivers.values(), *self._draining) if r.uses(source)]
        if route is not None:
            self.heartbeats.forget(route)
            self.channel.hang_up(route)
        for receiver in affected:
            receiver.fail(failure)
            if drained:
                receiver.drained()
        undrained = [r for r in affected if not r.release_safe()]
        if source.description is not None:
            self._revoke(source, undrained)

    def _revoke(self, source: PrefillSource, receivers: list[KVReceiver]) -> None:
        """Have the engine prove that the lost peer writes no more; off the control thread, it may wait."""
        thread = threading.Thread(
            target=self._revoke_until_drained,
            args=(source, receivers),
            name=f"pdcore-revoke-{source.identity.incarnation[:8]}",
            daemon=True,
        )
        with self._lock:
            self._revoking = [t for t in self._revoking if t.is_alive()] + [thread]
        thread.start()

    def _revoke_until_drained(self, source: PrefillSource, receivers: list[KVReceiver]) -> None:
        assert source.description is not None
        quiescence = Quiescence.IN_FLIGHT
        while quiescence is Quiescence.IN_FLIGHT and not self._closed:
            quiescence = self.engine.revoke(source.description.endpoint, Deadline.after(REVOKE_STEP))
        if quiescence is Quiescence.DRAINED:
            for receiver in receivers:
                receiver.drained()
        elif receivers:
            _log.warning("%d rooms of %s stay unsafe until this engine is closed", len(receivers), source)

    def _expire(self) -> None:
        for source in list(self._sources.values()):
            if source.overdue:
                self._lose_source(source, self._not_paired_in_time(source), drained=True)
        for record in self.rooms.expired():
            receiver = self._receivers.get(record.room)
            if receiver is not None and receiver.record is record:
                receiver.give_up(record.missed())
        if self._draining:
            with self._lock:
                self._draining = [r for r in self._draining if not r.release_safe()]

    def _not_paired_in_time(self, source: PrefillSource) -> KVTransferError:
        return KVTransferError(
            FailureCode.DEADLINE,
            f"{source} did not pair in time",
            f"timeouts.pairing is {self.config.timeouts.pairing:g} s",
            "look whether that prefill worker is stuck; raise timeouts.pairing if its engine is slow",
        )

    # --- at the end ------------------------------------------------------------------------

    def _peers(self) -> list[Route]:
        return list(self._routes)

    def _end_rooms(self, deadline: Deadline) -> None:
        with self._lock:
            receivers, revoking = list(self._receivers.values()), list(self._revoking)
        for receiver in receivers:
            receiver.give_up(self._shutdown_error())
        for thread in revoking:
            thread.join(deadline.remaining())

    def _all_drained(self) -> None:
        for receiver in (*self._receivers.values(), *self._draining):
            receiver.drained()

    def _leave(self, deadline: Deadline) -> None:
        self._http.close(deadline)
