"""PrefillManager: accepts decode ranks, and sends each request's KV cache to whom it was promised."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

from pdcore.arguments import due, instance, moment, room_id
from pdcore.bootstrap import RoomsRecord
from pdcore.config.records import Config
from pdcore.errors import FailureCode, PDCoreError
from pdcore.events import Gauges, MetadataReceived, PairingFailed, PeerState, Subscriber
from pdcore.host.address import parse_address
from pdcore.managers.manager import Manager
from pdcore.memory.metadata_buffers import AuxDataCodec
from pdcore.memory.pools import Pools
from pdcore.model import Deadline, Generation, PeerIdentity, Role, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.topology import Topology
from pdcore.prefill.facts import introduction
from pdcore.prefill.figures import with_prefill
from pdcore.prefill.links import Links
from pdcore.prefill.ready_waiter import Waiter
from pdcore.prefill.registration import Announce, Registration
from pdcore.prefill.rings import OwnRings
from pdcore.prefill.sender import KVSender
from pdcore.prefill.shipping import Shipping
from pdcore.prefill.verification import SentVerification
from pdcore.protocol import actions as a
from pdcore.protocol.machine import Settings
from pdcore.protocol.peer import Facts, Fit
from pdcore.protocol.send.send_room import SendRoom
from pdcore.protocol.stimuli import OpenSend, RowRead
from pdcore.rooms.handle import stillborn
from pdcore.rooms.quarantine import Quarantine
from pdcore.selection.select import Backend
from pdcore.wire import PairReply
from pdcore.wire.complaints import COMPLAINT_SECONDS, Complaints

__all__ = ["PrefillManager"]

_log = logging.getLogger("pdcore.prefill")


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
        self.quarantine = Quarantine(self.config.quarantine.grace, self._serves, self.survivors.ended)
        self.bootstrap = bootstrap
        self.waiter = Waiter()
        self._complaints = Complaints(_log, COMPLAINT_SECONDS)
        self._codec = AuxDataCodec(pools.aux) if pools.aux else None
        try:
            bound = self.channel.bind(self.place.listens, self.config.control.port)
        except BaseException:
            self._discard()
            raise
        self.address = self.place.address(int(bound.rpartition(":")[2]))
        ours = self.describe(self.address)
        self._start(ours)
        self._registration = Registration(bootstrap, ours, self.config, self.events)
        self.channel.start()
        self.events.show(self.snapshot)
        try:
            self._registration.announce(announce, Deadline.after(self.config.timeouts.bootstrap))
        except BaseException:
            self.close()
            raise

    def _start(self, ours: PeerDescription) -> None:
        """Make the machine, and what carries out that which it wants."""
        verify, pairing = self.config.transfer.verify, self.config.timeouts.pairing
        settings = Settings(pairing, self.config.liveness.interval, verify != "off")
        self._drive(
            ours,
            Fit(self._introduce),
            settings,
            {
                a.TurnedAway: self._turned_away,
                a.Connect: self._connect,
                a.Promised: self._joined,
                a.AwaitSource: lambda do: self._sender(do.generation).watch(do.chunk),
                a.Ship: lambda do: self._shipping.ship(self._sender(do.generation), do),
                a.FreeSlot: self._free_slot,
                a.Cancel: lambda do: self._sender(do.generation).sent.let_go(),
                a.Examine: lambda do: self._verification.begin(self._sender(do.generation)),
                a.ReadRow: self._read_row,
            },
        )
        state_plan, staging = self.backend.state_plan, self.staging
        self._links = Links(
            self.engine,
            self.pools,
            self.config,
            ours,
            state_plan,
            self.channel.soon,
            self.events,
            self.feed,
            None if staging is None else OwnRings(staging, ours, self.engine.capabilities),
        )
        self._shipping = Shipping(
            self.engine, self.quarantine, self._links, self.events, self.driver, inline=self.inline
        )
        rank = self.topology.unique_rank
        self._verification = SentVerification(verify, self.pools, rank, self._links.at, self.feed)

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
            at = moment(due(deadline, self.config.timeouts.request))
            opened = OpenSend(room_id(room), self.driver.generation(), at)
            sender = self.driver.open(opened, partial(KVSender, self, may_raise=may_raise))
        except PDCoreError as error:
            if may_raise:
                raise
            return KVSender(self, stillborn(SendRoom, room, self._unopened(error)), may_raise=False)
        self.endings.sooner()
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

    def unproven(self, target: PeerIdentity) -> str:
        """Why writes to a decode process have not ended, of rooms that have."""
        return self.quarantine.because(target) or "a write to it is under way"

    # --- what the machine wants ------------------------------------------------------------

    def _sender(self, generation: Generation) -> KVSender:
        handle = self.driver.handles[generation]
        assert isinstance(handle, KVSender)
        return handle

    def _introduce(self, there: PeerDescription) -> Facts | PairReply:
        return introduction(self._ours, there, self.quarantine.forsaken, len(self._links))

    def _turned_away(self, do: a.TurnedAway) -> None:
        peer, failure = do.identity, do.failure
        refused = "" if failure.code is FailureCode.INCOMPATIBLE else f"{peer} may not pair: "
        self._complaints.about(f"turned away {peer.address}", f"{refused}{failure}")
        if self.events.on:
            self.events.emit(PairingFailed(self.events.node, peer, failure.code, str(failure)))

    def _connect(self, do: a.Connect) -> None:
        self._links.connect(do)
        self._track(do.route, connected=True)

    def _free_slot(self, do: a.FreeSlot) -> None:
        link = self._links.at(do.route)
        if link is not None and link.slots is not None and link.identity == do.identity:
            link.slots.back(do.slot, do.number)

    def _joined(self, do: a.Promised) -> None:
        if self.events.on:
            wanted, pages = do.wanted, len(do.wanted.pages)
            node = self.events.node
            self.events.emit(
                MetadataReceived(node, wanted.room, do.generation, do.identity, pages, wanted.trace)
            )

    def _read_row(self, do: a.ReadRow) -> None:
        assert self._codec is not None  # there is a slot
        self.feed(RowRead(do.generation, self._codec.encode(do.slot)))

    def _part(self, lost: a.Lost) -> None:
        self._links.part(lost)
        if lost.paired:
            level = logging.INFO if lost.in_order else logging.WARNING
            _log.log(level, "lost %s: %s", lost.identity, lost.failure.there_is)

    def _serves(self, peer: PeerIdentity) -> bool:
        return any(known == peer for known in self._peers().values())

    # --- on the control thread -------------------------------------------------------------

    def _expire(self) -> None:
        self._chores.do("looking at quarantined transfers", self.quarantine.sweep)
        if not self._closed:
            self._chores.do("renewing the lease", partial(self._registration.tick, time.monotonic()))

    # --- at the end ------------------------------------------------------------------------

    def _figures(self, gauges: Gauges) -> Gauges:
        machine = self._machine
        peers = Counter(
            PeerState.PAIRED if peer.ready else PeerState.PAIRING
            for peer in list(machine.peers.by_route.values())
        )
        peers[PeerState.LOST] = self._links.leaving
        parked = len(machine.answers.early)
        return with_prefill(gauges, peers, parked, self.quarantine, self.address, self._registration)

    def _problems(self) -> Sequence[str]:
        return self._registration.problems()

    def _end_threads(self, deadline: Deadline) -> None:
        self._links.close(deadline)
        self._verification.close(deadline)
        self.waiter.close(deadline)

    def _engine_closed(self, *, tell: bool) -> None:
        super()._engine_closed(tell=tell)
        self.quarantine.release_all()

    def _forsaken(self) -> int:
        return len(self.quarantine.forsaken)

    def _leave(self, deadline: Deadline) -> None:
        self._registration.leave(deadline)
