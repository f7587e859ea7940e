"""PrefillManager: accepts decode ranks, and sends each request's KV cache to whom it was promised."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from functools import partial

from pdcore.arguments import due, instance, room_id
from pdcore.bootstrap import RoomsRecord
from pdcore.config.records import Config
from pdcore.errors import KVTransferError, PDCoreError
from pdcore.events import Gauges, Subscriber
from pdcore.host.address import parse_address
from pdcore.host.process import ProcessIdentity
from pdcore.managers.manager import Manager
from pdcore.managers.overdue import end_overdue
from pdcore.memory.metadata_buffers import AuxDataCodec
from pdcore.memory.pools import Pools
from pdcore.model import Deadline, PeerIdentity, Role, RoomId
from pdcore.pairing.topology import Topology
from pdcore.prefill.answers import Answers
from pdcore.prefill.delivery import Delivery
from pdcore.prefill.early_requests import EarlyRequests
from pdcore.prefill.figures import with_prefill
from pdcore.prefill.link import Destination, PeerLink
from pdcore.prefill.links import Links
from pdcore.prefill.ready_waiter import Waiter
from pdcore.prefill.reception import OfARoom, Reception
from pdcore.prefill.registration import Announce, Registration
from pdcore.prefill.sender import KVSender
from pdcore.prefill.senders import Senders
from pdcore.prefill.transfer import Shipment
from pdcore.prefill.verification import SentVerification
from pdcore.rooms.handle import RoomHandle
from pdcore.rooms.quarantine import Quarantine
from pdcore.selection.select import Backend
from pdcore.wire import Abort, Bye, Heartbeat, Message, PairRequest, RequestMetadata, Route, Verdict

__all__ = ["PrefillManager"]


class PrefillManager(Manager):
    """The prefill side of one rank.

    Starts the engine, registers the pools, and registers itself with the bootstrap service at
    ``bootstrap`` ("host:port"): before it returns, for ``timeouts.bootstrap`` at most, or with
    ``Announce.BACKGROUND`` as soon as the service is there. Until then :meth:`health` says why not.

    Raises:
        AddressError: ``bootstrap`` cannot be an address; nothing was started.
        BootstrapError: the control port cannot be bound, or the service waited for cannot be reached.
        AuthenticationError: the service waited for requires a key, or has another or none.
        And what :class:`~pdcore.managers.manager.Manager` raises.
    """

    def __init__(
        self,
        backend: Backend,
        pools: Pools,
        topology: Topology,
        bootstrap: str,
        config: Config | None = None,
        subscribers: Sequence[Subscriber] = (),
        *,
        announce: Announce = Announce.WAIT,
    ) -> None:
        bootstrap = str(parse_address(bootstrap, "the address of the bootstrap service"))
        instance("announce", announce, Announce, "hand in Announce.WAIT or Announce.BACKGROUND")
        super().__init__(Role.PREFILL, backend, pools, topology, config, subscribers)
        self.quarantine = Quarantine(
            self.config.quarantine.grace, lambda peer: self._links.serves(peer), self.survivors.ended
        )
        self.bootstrap = bootstrap
        self._senders, self._parking, self.waiter = Senders(), EarlyRequests(), Waiter()
        self.answers = Answers(topology.unique_rank, AuxDataCodec(pools.aux) if pools.aux else None)
        self._reception = Reception(
            self._senders, self._parking, topology, self.answers, self._post, self.channel.counts
        )
        try:
            bound = self.channel.bind(self.place.listens, self.config.control.port)
        except BaseException:
            self._discard()
            raise
        self.address = self.place.address(int(bound.rpartition(":")[2]))
        self._examiner = SentVerification(self.config.transfer.verify, pools, topology.unique_rank, self.tell)
        self.examine = self._examiner.begin
        ours = self.describe(self.address)
        self._links = Links(
            self.engine,
            pools,
            self.config,
            ours,
            backend.state_plan,
            self.channel.post,
            self.channel.soon,
            self.events,
            self.quarantine.forsaken,
        )
        self._registration = Registration(bootstrap, ours, self.config, self.events)
        self.channel.start()
        self.events.show(self.snapshot)
        try:
            self._registration.announce(announce, Deadline.after(self.config.timeouts.bootstrap))
        except BaseException:
            self.close()
            raise

    def sender(self, room: RoomId, deadline: Deadline | None = None, *, may_raise: bool = True) -> KVSender:
        """Open a room for one request; the deadline defaults to ``timeouts.request`` from now.

        Where ``may_raise`` is False, neither this nor what the handle is called with raises a PDCoreError:
        the room is FAILED, from birth if need be, and ``failure()`` says why.

        Raises:
            RoomError: the room is open already or can be none, or the manager is closed.
            ArgumentError: the deadline is no deadline.
        """
        try:
            self._check_open()
            record = self.rooms.open(room, due(deadline, self.config.timeouts.request))
        except PDCoreError as error:
            if may_raise:
                raise
            return KVSender(self, self._stillborn(room, error), may_raise=False)
        sender = KVSender(self, record, may_raise=may_raise)
        self._reception.opened(sender)
        self._end_if_closed(sender)
        return sender

    def register_dp_rank(self, *rooms: RoomId) -> None:
        """Tell the bootstrap service that this DP rank took some rooms; never waits.

        One rank of the replica suffices. Decode finds them by ``init(DPChoice.QUERY)``, and by the same id
        again only ten minutes later.

        Raises:
            RoomError: one can be no room; nothing is told then. Or the manager is closed.
        """
        self._check_open()
        record = RoomsRecord(tuple(map(room_id, rooms)), self.topology.dp_rank)
        self._registration.took(record, self.config.timeouts.bootstrap)

    # --- what senders ask ------------------------------------------------------------------

    def dispatch(self, link: PeerLink, delivery: Delivery, *, from_send: bool) -> Shipment | None:
        """Have a delivery done; returns the shipment that ``poll`` must advance, if any."""
        if self.inline and from_send:
            shipment = Shipment(self.engine, self.quarantine, link, [delivery])
            shipment.begin()
            return shipment
        # Chunks that had to wait for decode go on the lane in both models: there is no send to submit in.
        link.outbox(delivery.chunk.room).post(delivery, partial(Shipment, self.engine, self.quarantine, link))
        return None

    def tell(self, destination: Destination, message: Message) -> None:
        """Post a message to a destination, unless it is lost."""
        self._post(destination.link, message)

    def company(self, sender: KVSender) -> tuple[list[PeerIdentity], int]:
        """Return the decode ranks that have a room open and did not ask, and how many are paired."""
        return self._reception.guests(sender.room), len(self._links.all())

    def ended(self, sender: KVSender) -> None:
        """A room has ended: tell the decode ranks that have it open and did not ask for it."""
        self._reception.ended(sender)

    def unproven(self, target: PeerIdentity) -> str:
        """Why writes to a decode process have not ended, of rooms that have."""
        return self.quarantine.because(target) or "a write to it is under way"

    def forget(self, sender: KVSender) -> None:
        """Free the id of a room that was cleared; one that is not drained stays known until it is."""
        self._reception.cleared(sender)

    def suspect(self, link: PeerLink, failure: KVTransferError) -> None:
        """An engine says that this peer is gone: fail all its rooms now, unless it has paired anew."""
        why = f"{failure.happened}: {failure.there_is}"
        self.channel.call(partial(self._lose, link.route, why, only=link))

    # --- on the control thread -------------------------------------------------------------

    def _on_message(self, route: Route, message: Message) -> None:
        if isinstance(message, RequestMetadata):
            self._on_metadata(route, message)
        elif isinstance(message, Heartbeat):
            link = self._links.get(route)
            if link is None:
                self._disown(route)
            elif self.heartbeats.heard(route, time.monotonic()):
                self.backend.heartbeat_success(link.identity)
        elif isinstance(message, OfARoom):
            self._on_word(route, message)
        elif isinstance(message, Verdict):
            self._examiner.heard(route, message)
        elif isinstance(message, PairRequest):
            self._on_pair(route, message)
        elif isinstance(message, Bye):
            self._lose(route, message.reason, logging.INFO)
        else:
            self.channel.counts["unexpected"] += 1

    def _on_metadata(self, route: Route, wanted: RequestMetadata) -> None:
        link = self._links.get(route)
        if link is None or not link.ready:
            self.channel.post(route, self.answers.not_paired(wanted, self.address))
            if link is None:
                self._disown(route)
            return
        self._reception.asked(link, wanted)

    def _disown(self, route: Route) -> None:
        """Tell a decode rank that it is not paired, so that its next request pairs anew."""
        self.channel.post(route, Bye(self.incarnation, "it doesn't know this decode worker", drained=False))

    def _on_word(self, route: Route, word: OfARoom) -> None:
        link = self._links.get(route)
        if link is not None:
            self._reception.take(link, word)
        elif isinstance(word, Abort) and (rank := self._links.refused(route)) is not None:
            self._reception.given_up(route, rank, word)
        else:
            # Another process may have been here, and nothing is known of what it writes.
            self._disown(route)

    def _on_pair(self, route: Route, request: PairRequest) -> None:
        old = self._links.get(route)
        if old is not None and not old.ready:
            return  # the answer to its first request is under way
        if old is not None:
            self._lose(route, "it paired anew")
        if self._links.pair(route, request.description, old):
            self.heartbeats.track(route, time.monotonic(), connected=True)

    def _lose(
        self, route: Route, why: str, level: int = logging.WARNING, only: PeerLink | None = None
    ) -> None:
        link = self._links.get(route)
        if only is not None and link is not only:
            return
        self.heartbeats.forget(route)
        if link is None:
            return
        link.lost = True  # first: a room that takes a parked request of it now sees that
        self._links.lose(link, why, self._reception.lost(link, why), level)

    def _expire(self) -> None:
        self._chores.do("looking at quarantined transfers", self.quarantine.sweep)
        if not self._closed:
            self._chores.do("renewing the lease", partial(self._registration.tick, time.monotonic()))
        end_overdue(self._chores, self.rooms.expired())
        self._chores.do("sweeping rooms", self._reception.sweep)

    def _post(self, link: PeerLink, message: Message) -> None:
        if not link.lost:
            self.channel.post(link.route, message)

    # --- at the end ------------------------------------------------------------------------

    def _peers(self) -> dict[Route, PeerIdentity]:
        return {link.route: link.identity for link in self._links.all()}

    def _figures(self, gauges: Gauges) -> Gauges:
        return with_prefill(
            gauges, self._links, self._parking, self.quarantine, self.address, self._registration
        )

    def _problems(self) -> Sequence[str]:
        return self._registration.problems()

    def _process_of(self, route: Route) -> ProcessIdentity | None:
        link = self._links.get(route)
        return link.description.process if link is not None else None

    def _all_drained(self, *, tell: bool) -> None:
        for link in [] if tell else self._links.all():
            link.lost = True
        self.quarantine.release_all()

    def _end_rooms(self, deadline: Deadline) -> None:
        why = self._shutdown_error()
        self._chores.each("ending a room", self._senders.open(), lambda sender: sender.give_up(why))
        self._reception.close(why)
        self._links.close(deadline)
        self._examiner.close(deadline)
        self.waiter.close(deadline)

    def _handles(self) -> Sequence[RoomHandle]:
        return self._senders.all()

    def _forsaken(self) -> int:
        return len(self.quarantine.forsaken)

    def _leave(self, deadline: Deadline) -> None:
        self._registration.leave(deadline)
