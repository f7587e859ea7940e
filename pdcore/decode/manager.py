"""DecodeManager: pairs with prefill ranks on first use, and receives each request's KV cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import partial

from pdcore.arguments import due, moment, room_id
from pdcore.bootstrap import PrefillFacts
from pdcore.config.records import Config
from pdcore.decode.admission import WriterAdmission
from pdcore.decode.facts import as_failure
from pdcore.decode.figures import with_decode
from pdcore.decode.lookup import DIAL_DESCRIPTORS, GroupLookup
from pdcore.decode.receiver import KVReceiver
from pdcore.decode.revocation import Revocations
from pdcore.decode.unpacking import ArrivedSlots
from pdcore.decode.verification import ArrivedVerification
from pdcore.errors import EngineError, FailureCode, KVTransferError, PDCoreError
from pdcore.events import Gauges, MetadataSent, Subscriber
from pdcore.host.address import parse_address
from pdcore.host.shortage import require_descriptors
from pdcore.managers.manager import Manager
from pdcore.memory.metadata_buffers import AuxDataCodec
from pdcore.memory.pools import Pools
from pdcore.model import Deadline, PeerIdentity, Role, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.misfits import coverage_misfits, pairing_misfits
from pdcore.pairing.topology import DPChoice, Topology
from pdcore.prefill.lanes.lane import Lane
from pdcore.protocol import actions as a
from pdcore.protocol import stimuli as s
from pdcore.protocol.groups import GroupKey
from pdcore.protocol.machine import Settings
from pdcore.protocol.peer import Fit
from pdcore.protocol.receive.receive_room import ReceiveRoom
from pdcore.rooms.claims import Claims
from pdcore.rooms.handle import stillborn
from pdcore.selection.select import Backend

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
        self._codec = AuxDataCodec(pools.aux) if pools.aux else None
        self._start(self.describe(f"{self.place.advertised} pid {os.getpid()}"))
        self.channel.start()
        self.events.show(self.snapshot)

    def _start(self, ours: PeerDescription) -> None:
        """Make the machine, and what carries out that which it wants."""
        config, pairing = self.config, self.config.timeouts.pairing
        fit = Fit(
            suits=lambda there: pairing_misfits(there, ours),
            covers=lambda theirs: coverage_misfits(theirs, decode=ours),
        )
        self._drive(
            ours,
            fit,
            Settings(pairing, config.liveness.interval),
            {
                a.Find: lambda do: self._lookup.find(do),
                a.Dial: self._dial,
                a.Admit: lambda do: self._admission.admit(do),
                a.Revoke: lambda do: self._admission.revoke(do),
                a.Asked: self._asked,
                a.Compare: self._compare,
                a.Unpack: self._unpack,
                a.WriteRow: self._write_row,
                a.CheckRow: self._check_row,
            },
        )
        self._revocations = Revocations(self.engine, config.quarantine.grace, self.survivors.ended)
        self._admission = WriterAdmission(
            self.engine,
            pairing,
            self.events,
            self._revocations,
            self._held_by,
            self.feed,
        )
        verify, staging = config.transfer.verify != "off", self.staging
        self._arrived = Lane("arrived") if verify or staging is not None else None
        self._verification = ArrivedVerification(self._arrived if verify else None, self.pools, self.feed)
        if staging is not None and self._arrived is not None:
            self._slots = ArrivedSlots(staging, self.pools, self.claims, self._arrived, self.feed)
        self._lookup = GroupLookup(ours, config.timeouts, config.auth_key, self._paired_at, self.feed)
        self.group_key = self._lookup.key

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
            number = room_id(room)
            at = moment(due(deadline, self.config.timeouts.request))
            default = self._lookup.key(bootstrap, DPChoice.BY_ROOM, number)
            opened = s.OpenReceive(number, self.driver.generation(), at, default)
            make = partial(KVReceiver, self, bootstrap=bootstrap, may_raise=may_raise)
            receiver = self.driver.open(opened, make)
        except PDCoreError as error:
            if may_raise:
                raise
            kind = partial(ReceiveRoom, default=GroupKey(str(bootstrap), DPChoice.BY_ROOM))
            record = stillborn(kind, room, self._unopened(error))
            return KVReceiver(self, record, bootstrap, may_raise=False)
        self.endings.sooner()
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
        return self._shutdown_error() if self._closed else self._lookup.known.of(bootstrap)

    def unproven(self, writer: PeerIdentity) -> str:
        """Why a prefill process may still write to rooms that have ended."""
        return self._revocations.because(writer.incarnation) or "it has not said that its writes have ended"

    # --- what the machine wants ------------------------------------------------------------

    def _dial(self, do: a.Dial) -> None:
        try:
            require_descriptors(DIAL_DESCRIPTORS, f"to dial prefill {do.identity.address}")
        except EngineError as shortage:
            self.feed(s.PeerFailed(do.route, do.identity, as_failure(FailureCode.ENGINE, shortage)))
            return
        self._track(do.route, connected=False)
        self.channel.dial(do.route.decode())

    def _asked(self, do: a.Asked) -> None:
        """Requests for a room go out now."""
        self.engine.expect(1)
        if self.events.on:
            self.events.emit(MetadataSent(self.events.node, do.room, do.generation, do.pages))

    def _compare(self, do: a.Compare) -> None:
        if not self._verification.begin(self.driver.handles[do.generation].record, do):
            self.channel.counts["unexpected"] += 1

    def _unpack(self, do: a.Unpack) -> None:
        receiver = self.driver.handles[do.generation]
        assert isinstance(receiver, KVReceiver)
        self._slots.begin(do, receiver.claim)

    def _write_row(self, do: a.WriteRow) -> None:
        failure = None
        try:
            if self._codec is not None:
                self._codec.decode(do.slot, do.row)
        except PDCoreError as error:
            failure = KVTransferError(FailureCode.AUX, error.happened, error.there_is, error.to_do)
        finally:  # its slot is not free before this is said
            self.feed(s.RowWritten(do.generation, failure))

    def _check_row(self, do: a.CheckRow) -> None:
        failure, aux = None, self.pools.aux
        try:
            if aux is not None:
                aux.check_room(do.slot, self.driver.handles[do.generation].room)
        except KVTransferError as error:
            failure = error
        self.feed(s.RowChecked(do.generation, failure))

    def _part(self, lost: a.Lost) -> None:
        _log.warning("%s", lost.failure)
        self.channel.hang_up(lost.route, last_words=lost.stays)
        self._lookup.forget(
            self.driver.look(lambda m: {g.key.bootstrap for g in m.peers.groups.values() if g.lost})
        )

    def _held_by(self, writer: PeerIdentity) -> bool:
        """Whether pages are unsafe, or a staging ring is out of use, as a prefill rank may write there."""
        if self.driver.look(lambda m: m.peers.rings.waits_for(writer)):
            return True
        rooms = [handle.record for handle in list(self.driver.handles.values())]
        return any(isinstance(room, ReceiveRoom) and writer in room.writers for room in rooms)

    def _paired_at(self, bootstrap: str) -> bool:
        return self.driver.look(
            lambda m: any(g.key.bootstrap == bootstrap and g.ready for g in m.peers.groups.values())
        )

    # --- on the control thread -------------------------------------------------------------

    def _expire(self) -> None:
        self._chores.do("telling the engine", lambda: self.engine.expect(self.busy()))
        self._chores.do("looking at bootstrap services", self._tell_trouble)

    def _tell_trouble(self) -> None:
        """Let the machine know why groups are not found yet."""
        groups = self.driver.look(
            lambda m: [
                (g.key.bootstrap, m.peers.trouble.get(g.key.bootstrap, ""))
                for g in m.peers.groups.values()
                if not g.members
            ]
        )
        for bootstrap, told in set(groups):
            if (why := self._lookup.trouble(bootstrap)) != told:
                self.feed(s.Trouble(bootstrap, why))

    def _figures(self, gauges: Gauges) -> Gauges:
        known, groups, rings = self.driver.look(
            lambda m: (
                list(m.peers.by_route.values()),
                {g.key.bootstrap for g in m.peers.groups.values()},
                m.peers.rings.in_doubt,
            )
        )
        services = groups | self._lookup.known.addresses()
        return with_decode(gauges, known, len(self._revocations), services, rings)

    # --- at the end ------------------------------------------------------------------------

    def _end_threads(self, deadline: Deadline) -> None:
        self._admission.close(deadline)
        if self._arrived is not None:
            self._arrived.close()
            self._arrived.join(deadline)

    def _forsaken(self) -> int:
        return self._revocations.forsaken

    def _leave(self, deadline: Deadline) -> None:
        self._lookup.close(deadline)
