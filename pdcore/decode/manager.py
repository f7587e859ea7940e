"""DecodeManager: pairs with prefill ranks on first use, and receives each request's KV cache."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from functools import partial

from pdcore.arguments import due
from pdcore.bootstrap import PrefillFacts, ReplicaQuery
from pdcore.config.records import Config
from pdcore.decode.figures import with_decode
from pdcore.decode.group import PrefillGroup
from pdcore.decode.lookout import Lookout
from pdcore.decode.receiver import KVReceiver
from pdcore.decode.receivers import Receivers
from pdcore.decode.reception import OfARoom, Reception
from pdcore.decode.revocation import Revocations
from pdcore.decode.source import PrefillSource, gone, replaced, turned_away
from pdcore.decode.sources import Sources
from pdcore.decode.verification import ArrivedVerification
from pdcore.decode.waits_for import not_paired_in_time
from pdcore.errors import AuthenticationError, KVTransferError, PDCoreError
from pdcore.events import Gauges, PeerLost, Subscriber
from pdcore.host.address import parse_address
from pdcore.host.process import ProcessIdentity
from pdcore.managers.manager import TICK, Manager
from pdcore.managers.overdue import end_overdue
from pdcore.memory.pools import Pools
from pdcore.model import Deadline, PeerIdentity, Role, RoomId
from pdcore.pairing.topology import DPChoice, Topology
from pdcore.rooms.claims import Claims
from pdcore.rooms.handle import RoomHandle
from pdcore.selection.select import Backend
from pdcore.wire import (
    Abort,
    Bye,
    Connection,
    ConnectionEvent,
    Heartbeat,
    Message,
    PairReply,
    RequestMetadata,
    Route,
)

__all__ = ["DecodeManager"]

_log = logging.getLogger("pdcore.decode")


class DecodeManager(Manager):
    """The decode side of one rank. Dials out only: it listens on no port.

    Raises:
        What :class:`~pdcore.managers.manager.Manager` raises.
    """

    def __init__(
        self,
        backend: Backend,
        pools: Pools,
        topology: Topology,
        config: Config | None = None,
        subscribers: Sequence[Subscriber] = (),
    ) -> None:
        super().__init__(Role.DECODE, backend, pools, topology, config, subscribers)
        self.claims = Claims.of(pools)
        self._receivers = Receivers()
        self._lookout = Lookout(self._receivers, self._chores, TICK, self.config.liveness.interval)
        self._verifier = ArrivedVerification(self.config.transfer.verify, pools, self.channel.post)
        self._reception = Reception(self._receivers, self._verifier, pools, self.channel.counts)
        description = self.describe(f"{self.place.advertised} pid {os.getpid()}")
        self._sources = Sources(
            self.engine,
            description,
            self.config.timeouts,
            self.channel,
            self.heartbeats,
            self.events,
            self._lose_source,
            self.config.auth_key,
            Revocations(self.engine, self.config.quarantine.grace, self.survivors.ended),
        )
        self.channel.start()
        self.events.show(self.snapshot)

    def receiver(
        self, bootstrap: str, room: RoomId, deadline: Deadline | None = None, *, may_raise: bool = True
    ) -> KVReceiver:
        """Open a room whose prefill is registered at the bootstrap service ``bootstrap`` (host:port).

        The deadline defaults to ``timeouts.request`` from now; prefill gets what is left of it. Where
        ``may_raise`` is False, neither this nor what the handle is called with raises a PDCoreError: the
        room is FAILED, from birth if need be, and ``failure()`` says why.

        Raises:
            AddressError: ``bootstrap`` cannot be an address; no room was opened.
            RoomError: the room is open already or can be none, or the manager is closed.
            ArgumentError: the deadline is no deadline.
        """
        try:
            self._check_open()
            bootstrap = str(parse_address(bootstrap, "the address of the bootstrap service"))
            record = self.rooms.open(room, due(deadline, self.config.timeouts.request))
        except PDCoreError as error:
            if may_raise:
                raise
            return KVReceiver(self, self._stillborn(room, error), bootstrap, may_raise=False)
        receiver = KVReceiver(self, record, bootstrap, may_raise=may_raise)
        self._receivers.add(receiver)
        self._end_if_closed(receiver)
        return receiver

    def decline(
        self,
        bootstrap: str,
        room: RoomId,
        reason: str = "",
        prefill_dp_rank: int | DPChoice = DPChoice.BY_ROOM,
    ) -> bool:
        """Have prefill send nothing of a room that is not open here; never waits, and the id is free after.

        As :meth:`KVReceiver.decline`, in one call. Returns whether prefill is told, as soon as it can be. It
        is not where the id is in use, the manager is closed, or an argument is wrong: the log says so.
        """
        receiver = self.receiver(bootstrap, room, may_raise=False)
        if prefill_dp_rank is not DPChoice.BY_ROOM:
            receiver.init(prefill_dp_rank)
        receiver.decline(reason)
        receiver.clear()
        if (why := receiver.failure()) is not None and why.code.is_error:
            _log.warning("room %s cannot be declined: %s", room, why)
            return False
        return True

    def prefill_group(self, bootstrap: str) -> PrefillFacts | KVTransferError | None:
        """Return what the prefill group registered at ``bootstrap`` (host:port) says of itself.

        No room is needed. None: it is not known yet, and is being asked for. An error says why it cannot be
        had: the service is not reached, has no prefill, wants a key, or the address can be none; it is asked
        again a moment later. Never waits, raises no error of pdcore's but in a forked child, and costs a
        dictionary look-up: facts are kept as long as this side is paired with that group, else asked for
        again within the lease of the rank, and dropped when the group is lost.
        """
        self._require_here()
        return self._shutdown_error() if self._closed else self._sources.known.of(bootstrap)

    # --- what receivers ask ----------------------------------------------------------------

    def group(self, bootstrap: str, query: ReplicaQuery) -> PrefillGroup:
        """Return the prefill ranks of a DP replica that this rank needs; pairing begins if need be."""
        return self._sources.find(bootstrap, query)

    def default_group(self, bootstrap: str, room: RoomId) -> PrefillGroup | None:
        """Return the group that a room has unless ``init`` chooses another; None while the manager closes."""
        return None if self._closed else self.group(bootstrap, ReplicaQuery(DPChoice.BY_ROOM, room))

    def request(self, source: PrefillSource, wanted: RequestMetadata) -> None:
        """Post a request to a paired prefill rank."""
        self.engine.expect(1)
        self.say(source, wanted)

    def say(self, source: PrefillSource, message: Message) -> None:
        """Tell a prefill rank something, unless it is lost by then: the next has the same route."""
        self.channel.post_if(lambda: self._sources.of(source.route) is source, source.route, message)

    def abandon(self, source: PrefillSource, abort: Abort) -> None:
        """Tell prefill that a request was given up."""
        self.channel.post(source.route, abort)

    def trouble(self, bootstrap: str) -> str:
        """Return how often in a row a bootstrap service was not reached and why; "" if it was."""
        return self._sources.trouble(bootstrap)

    def reaches(self, source: PrefillSource) -> bool:
        """Whether that prefill process is paired, perhaps anew."""
        current = self._sources.of(source.route)
        return current is not None and current.ready and current.identity == source.identity

    def unproven(self, writer: PeerIdentity) -> str:
        """Why a prefill process may still write to rooms that have ended."""
        return self._sources.unproven(writer.incarnation) or "it has not said that its writes have ended"

    def forget(self, receiver: KVReceiver) -> None:
        """Free the id of a room that was cleared; one that is not drained stays known until it is."""
        self._receivers.clear(receiver)

    # --- on the control thread -------------------------------------------------------------

    def _on_message(self, route: Route, message: Message) -> None:
        source = self._sources.of(route)
        if source is None:
            self.channel.counts["stale"] += 1
        elif isinstance(message, OfARoom):
            self._reception.take(source, message)
        elif isinstance(message, Heartbeat):
            self._on_heartbeat(source, message)
        elif isinstance(message, PairReply):
            self._sources.answered(source, message)
        elif isinstance(message, Bye):
            self._lose(route, message.reason)
            if message.drained:
                self._drained(source)
        else:
            self.channel.counts["unexpected"] += 1

    def _on_connection(self, route: Route | None, event: ConnectionEvent) -> None:
        super()._on_connection(route, event)
        source = self._sources.of(route) if route is not None else None
        if source is not None and source.ready and event.what is Connection.HANDSHAKEN:
            # What was under way when the connection before ended is lost, whoever said it.
            using = self._receivers.using(source)
            self._chores.each("asking how a room stands", using, lambda room: room.met_again(source))

    def _on_heartbeat(self, source: PrefillSource, message: Heartbeat) -> None:
        if message.incarnation != source.identity.incarnation:
            self.channel.counts["stale"] += 1
            self._lose_source(source, replaced(source, message.incarnation))
            return
        self.heartbeats.heard(source.route, time.monotonic())
        if source.ready:
            self.backend.heartbeat_success(source.identity)

    def _lose(self, route: Route, why: str) -> None:
        source = self._sources.of(route)
        if source is not None:
            self._lose_source(source, gone(source, why))

    def _on_refused(self, route: Route, error: AuthenticationError) -> None:
        source = self._sources.of(route)
        if source is not None:
            self._lose_source(source, turned_away(source, error))

    def _lose_source(self, source: PrefillSource, failure: KVTransferError) -> None:
        if not source.lose(failure):
            return
        _log.warning("%s", failure)
        affected = self._receivers.using(source)
        if self.events.on and source.description is not None:
            why = failure.there_is
            self.events.emit(PeerLost(self.events.node, source.identity, why, len(affected)))
        for receiver in affected:
            receiver.give_up(failure, source)
        self._sources.drop(source, partial(self._receivers.held_by, source), partial(self._drained, source))

    def _drained(self, source: PrefillSource) -> None:
        for receiver in self._receivers.using(source):
            receiver.drained(source)

    def _expire(self) -> None:
        chores = self._chores
        chores.do("telling the engine", lambda: self.engine.expect(self.rooms.busy()))
        chores.each("giving a pairing up", self._sources.overdue(), self._give_pairing_up)
        end_overdue(self._chores, self.rooms.expired())
        self._lookout.look()
        chores.do("sweeping rooms", self._receivers.sweep)

    def _give_pairing_up(self, group: PrefillGroup) -> None:
        failure = not_paired_in_time(group, self.config.timeouts.pairing)
        for member in group.members:
            if not member.ready:
                self._lose_source(member, failure)
        group.unpaired(failure)

    def _figures(self, gauges: Gauges) -> Gauges:
        return with_decode(gauges, self._sources)

    # --- at the end ------------------------------------------------------------------------

    def _peers(self) -> dict[Route, PeerIdentity]:
        return {source.route: source.identity for source in self._sources.all()}

    def _process_of(self, route: Route) -> ProcessIdentity | None:
        source = self._sources.of(route)
        there = source.description if source is not None else None
        return there.process if there is not None else None

    def _end_rooms(self, deadline: Deadline) -> None:
        why = self._shutdown_error()
        self._chores.each("ending a room", self._receivers.open(), lambda room: room.give_up(why))
        self._sources.end_threads(deadline)
        self._verifier.close(deadline)

    def _all_drained(self, *, tell: bool) -> None:
        for receiver in self._receivers.all():
            receiver.drained()

    def _handles(self) -> Sequence[RoomHandle]:
        return self._receivers.all()

    def _forsaken(self) -> int:
        return self._sources.forsaken

    def _leave(self, deadline: Deadline) -> None:
        self._sources.close(deadline)
