"""What both roles do with their machine: drive it, tell who listens, and keep the handles of its rooms."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from pdcore import __version__
from pdcore.config.records import Config
from pdcore.contract.engine import TransferEngine
from pdcore.events import Events, PairingFailed, PeerLost, RoomEnded, RoomOpened
from pdcore.host.fork import Birthplace
from pdcore.host.process import ProcessIdentity
from pdcore.managers.driver import Carriers, Driver
from pdcore.managers.duties import Duties
from pdcore.managers.liveness import Heartbeats
from pdcore.managers.pairing_remarks import announce_pairing
from pdcore.memory.pools import Pools
from pdcore.memory.staging import StagingMemory
from pdcore.model import AuxTransport, Incarnation, KVPoll, PeerIdentity, Role, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.topology import Topology
from pdcore.protocol import actions as a
from pdcore.protocol import stimuli as s
from pdcore.protocol.history.log import LoggedStimulus, StimulusLog, history
from pdcore.protocol.history.transcript import write
from pdcore.protocol.machine import Machine, Settings
from pdcore.protocol.peer import Fit, PairingState
from pdcore.rooms.endings import Endings
from pdcore.selection.select import Backend
from pdcore.wire import Channel, Heartbeat, Route

__all__ = ["Endpoint"]


class Endpoint(Duties):
    """One side of one rank, as far as the machine goes. ``mute``: nothing is said any more."""

    _birthplace: Birthplace
    role: Role
    incarnation: Incarnation
    config: Config
    backend: Backend
    engine: TransferEngine
    pools: Pools
    staging: StagingMemory | None
    topology: Topology
    aux_transports: tuple[AuxTransport, ...]
    channel: Channel
    endings: Endings
    events: Events
    heartbeats: Heartbeats[Route]
    driver: Driver
    feed: Callable[[s.Stimulus], None]
    _machine: Machine
    _regions: bytes
    _ours: PeerDescription
    _settings: Settings
    _mute = False

    def _require_here(self) -> None:
        self._birthplace.require(f"the {self.role.value} manager")

    def describe(self, address: str) -> PeerDescription:
        """Return what the other side must know to pair with this one."""
        aux = self.pools.aux
        return PeerDescription(
            role=self.role,
            incarnation=self.incarnation,
            address=address,
            version=__version__,
            backend=self.backend.spec.name,
            protocol=self.backend.choice.protocol or "",
            topology=self.topology,
            layout=self.pools.layout,
            state=tuple(pool.component for pool in self.pools.state),
            aux=aux.schema if aux else None,
            aux_slots=aux.slots if aux else 0,
            aux_transports=self.aux_transports,
            endpoint=self.engine.endpoint(),
            regions=self._regions,
            verify=self.config.transfer.verify,
            process=ProcessIdentity.here(),
            engine_version=self.backend.engine_version(),
            max_message_bytes=self.config.control.max_message_bytes,
            aux_form=aux.form if aux else None,
            staging=self.staging.layout if self.staging is not None else None,
        )

    def history(self, room: RoomId) -> list[LoggedStimulus]:
        """Return what happened to a room, as far back as is kept: calls, messages, ends of its work."""
        self._require_here()
        return history(self.driver.entries(), room)

    def record(self, path: str | Path) -> None:
        """Write what this side was told lately, and the state it has reached, for ``pdcore replay``.

        It holds what requests are made of: page numbers, and aux rows that went by message.

        Raises:
            OSError: it cannot be written there.
        """
        self._require_here()
        recording = self.driver.recording(self._ours, self._settings)
        with Path(path).open("wb") as file:
            file.writelines(write(recording))

    def _drive(self, ours: PeerDescription, fit: Fit, settings: Settings, carriers: Carriers) -> None:
        """Make this side's machine; take what carries out that which only this role knows."""
        log = StimulusLog()
        introduce = log.answering(fit.introduce) if fit.introduce is not None else None
        noted = Fit(introduce, log.answering(fit.suits), log.answering(fit.covers))
        machine = Machine(ours, noted, settings, self.channel.counts)
        self._ours, self._settings = ours, settings
        common: Carriers = {
            a.Post: self._post,
            a.Suspect: self._suspect,
            a.Begun: self._begun,
            a.Ended: self._ended,
            a.Silent: self._silent,
            a.Forget: lambda do: self.driver.handles.pop(do.generation, None),
            a.Paired: self._paired,
            a.Lost: self._lost,
        }
        self._machine = machine
        self.driver = Driver(machine, {**common, **carriers}, log)
        self.feed = self.driver.feed

    def _post(self, do: a.Post) -> None:
        if not self._mute:
            self.channel.post(do.route, do.message)

    def _suspect(self, do: a.Suspect) -> None:
        """An engine says that a peer is gone: lose it, unless it has paired anew."""
        failure = do.failure
        self.feed(s.PeerGone(do.route, f"{failure.happened}: {failure.there_is}", do.identity))

    def _engine_closed(self, *, tell: bool) -> None:
        """Every page of this side is safe, and if ``tell``, of the peers too."""
        self._mute = not tell
        self.feed(s.AllSilent())

    def _begun(self, do: a.Begun) -> None:
        if self.events.on:
            self.events.emit(RoomOpened(self.events.node, do.room, do.generation))

    def _ended(self, do: a.Ended) -> None:
        handle = self.driver.handles[do.generation]
        record = handle.record
        try:
            if do.silent:
                handle.fell_silent()
            if self.events.on:
                node, metric = self.events.node, handle.metric()
                self.events.emit(RoomEnded(node, record.room, do.generation, record.failure, metric))
        finally:  # whatever raises: somebody waits
            self.endings.tell(record)

    def _silent(self, do: a.Silent) -> None:
        handle = self.driver.handles[do.generation]
        try:
            handle.fell_silent()
        finally:
            self.endings.tell(handle.record)

    def _paired(self, do: a.Paired) -> None:
        ours, theirs = self._machine.ours, do.description
        both = (theirs, ours) if do.identity.role is Role.PREFILL else (ours, theirs)
        announce_pairing(self.events, do.identity, *both)

    def _track(self, route: Route, *, connected: bool) -> None:
        """Expect heartbeats of a peer: the control thread does, before it dials or hears of a connection."""
        self.channel.call(partial(self.heartbeats.track, route, time.monotonic(), connected=connected))

    def _lost(self, do: a.Lost) -> None:
        """A peer is lost, or did not pair: forget it, and say so."""
        self.channel.call(partial(self.heartbeats.forget, do.route))
        self._part(do)
        if self.events.on:
            node, peer, failure = self.events.node, do.identity, do.failure
            if do.paired:
                self.events.emit(PeerLost(node, peer, failure.there_is, do.rooms))
            else:
                self.events.emit(PairingFailed(node, peer, failure.code, str(failure)))

    def _by_state(self) -> Counter[KVPoll]:
        """Return how many rooms that are not cleared are in which state."""
        records = [handle.record for handle in list(self.driver.handles.values())]
        return Counter(record.status for record in records if not record.cleared)

    def busy(self) -> int:
        """Return how many rooms have not ended."""
        return sum(not handle.record.over for handle in list(self.driver.handles.values()))

    def _peers(self) -> Mapping[Route, PeerIdentity]:
        """Return all peers by route."""
        return {route: peer.identity for route, peer in self._machine.peers.by_route.copy().items()}

    def _process_of(self, route: Route) -> ProcessIdentity | None:
        """Return the process of a paired peer, if it said which."""
        peer = self._machine.peers.by_route.get(route)
        return peer.description.process if peer is not None and peer.description is not None else None

    def _awaits_beats(self, route: Route) -> bool:
        """Whether a peer expects heartbeats: it is not lost, and has answered whether it pairs."""
        peer = self._machine.peers.by_route.get(route)
        return peer is not None and peer.state is not PairingState.ASKED

    def _lose(self, route: Route, why: str) -> None:
        self.feed(s.PeerGone(route, why))

    def _beats(self, route: Route, beat: Heartbeat) -> bool:
        """Take a heartbeat; False if nobody is known at that route, or somebody else."""
        peer = self._machine.peers.by_route.get(route)
        if peer is None or beat.incarnation != peer.identity.incarnation:
            return False
        if self.heartbeats.heard(route, time.monotonic()) and peer.ready:
            self.backend.heartbeat_success(peer.identity)
        return True
