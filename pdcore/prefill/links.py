"""The paired decode ranks as engines and lanes see them: connected, written to, let go."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from pdcore.config.records import Config
from pdcore.contract.backend import StatePlan, StateRequest
from pdcore.contract.engine import TransferEngine
from pdcore.errors import EngineError, FailureCode, IncompatiblePeerError, KVTransferError, PDCoreError
from pdcore.events import Events, Stage, stage
from pdcore.managers.pairing_remarks import engine_remark
from pdcore.memory.pools import Pools
from pdcore.model import Deadline, PeerIdentity, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.sharding import told_by_sizes
from pdcore.prefill.lanes.slots import PeerSlots
from pdcore.prefill.lanes.turns import Soon
from pdcore.prefill.link import PeerLink
from pdcore.prefill.rings import OwnRings
from pdcore.protocol.actions import Connect, Lost
from pdcore.protocol.stimuli import PeerConnected, PeerFailed, RingQuiet, Stimulus
from pdcore.wire import Route
from pdcore.wire.complaints import COMPLAINT_SECONDS, Complaints

__all__ = ["Links"]

MOST_EARLIER = 1024
"""Decode processes of which is remembered what rings they lent in earlier pairings."""

_log = logging.getLogger("pdcore.prefill")


class Links:
    """The links of decode ranks by route, and those of lost ones until their lanes have ended; of these, the
    slots that they had, which their rank is told of when it pairs again.

    The lock guards all fields; who carries actions out adds and drops.
    """

    def __init__(
        self,
        engine: TransferEngine,
        pools: Pools,
        config: Config,
        description: PeerDescription,
        state_plan: Callable[[StateRequest], StatePlan | None],
        soon: Soon,
        events: Events,
        feed: Callable[[Stimulus], None],
        rings: OwnRings | None = None,
    ) -> None:
        self._engine, self._pools, self._config = engine, pools, config
        self._description, self._state_plan = description, state_plan
        self._events, self._feed, self._soon = events, feed, soon
        self._rings = rings
        self._lock = threading.Lock()
        self._links: dict[Route, PeerLink] = {}
        self._leaving: list[PeerLink] = []
        self._earlier: OrderedDict[PeerIdentity, dict[int, PeerSlots]] = OrderedDict()
        self._closed = False
        self._complaints = Complaints(_log, COMPLAINT_SECONDS)

    def __len__(self) -> int:
        """How many have lanes."""
        return len(self._links) + len(self._leaving)

    @property
    def leaving(self) -> int:
        """How many are lost, and their lanes have not ended."""
        with self._lock:
            leaving = list(self._leaving)
        return sum(not link.ended for link in leaving)

    def at(self, route: Route) -> PeerLink | None:
        """Return the link of a route."""
        return self._links.get(route)

    def connect(self, do: Connect) -> None:
        """Connect the engine to a rank on its own lane, so that a hung one delays nobody else."""
        slots, wrong = self._slots_for(do)
        lanes = self._config.transfer.lanes_per_peer
        link = PeerLink(do.route, self._description, do.description, self._engine, lanes, self._soon, slots)
        if link.aux_transport is not self._description.aux_transports[0]:
            _log.warning(
                "aux rows go to %s over %s: it takes them no other way",
                link.identity,
                link.aux_transport.value,
            )
        groups = self._description.topology, do.description.topology
        if concluded := told_by_sizes(*groups, self._description.layout, do.description.layout):
            _log.warning("paired with %s: %s", link.identity, concluded)
        with self._lock:
            closed = self._closed
            before = [old for old in self._leaving if old.route == do.route and not old.ended]
            if not closed:
                self._links[do.route] = link
        if closed:  # while it was made; nobody else would end its lanes
            link.close()
            return
        link.outbox(RoomId(0)).lane.put(partial(self._connect, link, before, wrong))

    def part(self, lost: Lost) -> None:
        """Let go of the link to a rank that is lost; its lanes end."""
        with self._lock:
            link = self._links.pop(lost.route, None)
            self._leaving = [old for old in self._leaving if not old.ended]
            if link is not None:
                self._leaving.append(link)
            if link is not None and link.slots is not None:
                earlier = self._earlier.setdefault(link.identity, {})
                if (before := earlier.get(link.slots.lent)) is not None:
                    before.when_quiet(None)
                earlier[link.slots.lent] = link.slots
                if len(self._earlier) > MOST_EARLIER:
                    self._earlier.popitem(last=False)
        if link is not None:
            link.lost = True
            link.close()

    def close(self, deadline: Deadline) -> None:
        """Let all lanes end and wait for them, those of lost peers as well; no link is made from now on."""
        with self._lock:
            self._closed = True
            links = [*self._links.values(), *self._leaving]
        for link in links:
            link.close()
        for link in links:
            if not link.join(deadline):
                _log.error("the lanes of %s did not end within the shutdown deadline", link.identity)

    def _slots_for(self, do: Connect) -> tuple[PeerSlots | None, EngineError | None]:
        """Return slots for a pair, or why it can have none and needs some."""
        if self._rings is None:
            return None, None
        with self._lock:
            links = [*self._links.values(), *(old for old in self._leaving if not old.ended)]
        used = [link.slots.ring for link in links if link.slots is not None]
        try:
            return self._rings.slots_for(do, used), None
        except EngineError as error:
            return None, error

    def _connect(self, link: PeerLink, before: list[PeerLink], wrong: EngineError | None) -> None:
        limit = self._config.timeouts.pairing
        deadline = Deadline.after(limit)
        try:
            if wrong is not None:
                raise wrong
            # Decode admits our writes again when it reads the reply: no lane may start one of the earlier
            # pairing then. What is in flight is in quarantine, and its pages are decode's to keep.
            if not all(old.join(deadline) for old in before):
                raise EngineError(
                    "the writes of an earlier pairing have not ended",
                    f"{limit:g} s passed",
                    "try again later",
                )
            topology = self._description.topology
            with stage(self._events, Stage.CONNECT, peer=link.identity):
                link.connect(topology, self._pools, self._state_plan, deadline)
        # An adapter may raise anything; decode must learn that it is not paired, and why.
        except Exception as error:
            self._complaints.about(f"pairing {link.route!r}", f"cannot pair with {link.identity}: {error}")
            failure = _failure(link, error, engine_remark(self._description, link.description))
            if not link.lost:  # or the same process has paired anew, which this says nothing of
                self._feed(PeerFailed(link.route, link.identity, failure))
        else:
            if not link.lost:
                self._feed(PeerConnected(link.route, link.identity))
                self._tell_of_rings(link)

    def _tell_of_rings(self, link: PeerLink) -> None:
        """Have the peer told, once that is so, that rings of earlier pairings are its own again: their lanes
        have ended."""
        with self._lock:
            earlier = self._earlier.get(link.identity, {})
            again = earlier.pop(link.slots.lent, None) if link.slots is not None else None
            rings = dict(earlier)
        if again is not None:
            again.when_quiet(None)
        for ring, slots in rings.items():
            slots.when_quiet(partial(self._feed, RingQuiet(link.route, link.identity, ring)))


def _failure(link: PeerLink, error: Exception, remark: str) -> KVTransferError:
    code = FailureCode.INCOMPATIBLE if isinstance(error, IncompatiblePeerError) else FailureCode.ENGINE
    more = f"; {remark}" if remark and code is FailureCode.ENGINE else ""
    if isinstance(error, PDCoreError):
        return KVTransferError(
            code, f"{error.happened} ({link.identity})", error.there_is + more, error.to_do
        )
    happened = f"connecting to {link.identity} raised"
    return KVTransferError(code, happened, repr(error) + more, "report it to the backend's author")
