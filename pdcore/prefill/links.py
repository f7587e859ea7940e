"""All decode ranks that are paired, and how they become so."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import partial

from pdcore.config.records import Config
from pdcore.contract.backend import StatePlan, StateRequest
from pdcore.contract.engine import TransferEngine
from pdcore.errors import EngineError, FailureCode, IncompatiblePeerError, PDCoreError
from pdcore.events import Events, PairingFailed, PeerLost, PeerState, Stage, stage
from pdcore.managers.pairing_remarks import announce_pairing, engine_remark
from pdcore.memory.pools import Pools
from pdcore.model import Deadline, Incarnation, PeerIdentity, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.misfits import pairing_misfits
from pdcore.pairing.sharding import told_by_sizes
from pdcore.prefill.link import PeerLink
from pdcore.prefill.turns import Soon
from pdcore.wire import Failure, Message, PairReply, Route
from pdcore.wire.complaints import COMPLAINT_SECONDS, Complaints

__all__ = ["Links"]

_log = logging.getLogger("pdcore.prefill")

MOST_PEERS = 4_096
"""Each has a lane of its own: a thread."""


class Links:
    """The paired decode ranks by route, and those that were lost until their lanes have ended.

    The lock guards ``_links``, which the control thread adds to, ``_leaving``, ``_refused`` and ``_closed``.
    """

    def __init__(
        self,
        engine: TransferEngine,
        pools: Pools,
        config: Config,
        description: PeerDescription,
        state_plan: Callable[[StateRequest], StatePlan | None],
        post: Callable[[Route, Message], None],
        soon: Soon,
        events: Events,
        forsaken: AbstractSet[Incarnation],
    ) -> None:
        self._engine = engine
        self._pools = pools
        self._config = config
        self._description = description
        self._state_plan = state_plan
        self._post, self._soon = post, soon
        self._events = events
        self._forsaken = forsaken
        self._lock = threading.Lock()
        self._links: dict[Route, PeerLink] = {}
        self._leaving: list[PeerLink] = []
        self._refused: OrderedDict[Route, int] = OrderedDict()
        self._closed = False
        self._complaints = Complaints(_log, COMPLAINT_SECONDS)

    def get(self, route: Route) -> PeerLink | None:
        """Return the link of a route."""
        return self._links.get(route)

    def refused(self, route: Route) -> int | None:
        """Return the unique rank of a decode rank that was refused to pair when it last asked, or None."""
        return self._refused.get(route)

    def serves(self, peer: PeerIdentity) -> bool:
        """Whether a decode process is paired."""
        return any(link.identity == peer for link in self.all())

    def all(self) -> list[PeerLink]:
        """Return all links."""
        with self._lock:
            return list(self._links.values())

    def by_state(self) -> Counter[PeerState]:
        """Return how many decode ranks are paired, are pairing, or lost with lanes that have not ended."""
        with self._lock:
            links, leaving = list(self._links.values()), list(self._leaving)
        states = Counter(PeerState.PAIRED if link.ready else PeerState.PAIRING for link in links)
        states[PeerState.LOST] = sum(not link.ended for link in leaving)
        return states

    def pair(self, route: Route, there: PeerDescription, old: PeerLink | None) -> bool:
        """Begin to pair with a decode rank, whose earlier link was ``old``; False if it does not fit."""
        misfits = pairing_misfits(self._description, there)
        if misfits:
            error = IncompatiblePeerError(there.address, misfits)
            self._complaints.about(f"misfit {route!r}", str(error))
            peer = PeerIdentity(there.role, there.incarnation, there.address)
            self._report_failed(peer, FailureCode.INCOMPATIBLE, str(error))
            self._refuse(route, there, PairReply(self._description, misfits))
            return False
        if there.incarnation in self._forsaken:
            self._complaints.about(f"forsaken {route!r}", f"{there.address} may not pair: it counts as dead")
            self._refuse(route, there, PairReply(self._description, (), _forsaken()))
            return False
        with self._lock:
            known = len(self._links) + len(self._leaving)
        if known >= MOST_PEERS:
            self._complaints.about("too many peers", f"{there.address} may not pair: {MOST_PEERS} peers are")
            self._refuse(route, there, PairReply(self._description, (), _too_many()))
            return False
        lanes = self._config.transfer.lanes_per_peer
        link = PeerLink(route, self._description, there, self._engine, lanes, self._soon)
        if link.aux_transport is not self._description.aux_transports[0]:
            _log.warning(
                "aux rows go to %s over %s: it takes them no other way",
                link.identity,
                link.aux_transport.value,
            )
        groups = self._description.topology, there.topology
        if concluded := told_by_sizes(*groups, self._description.layout, there.layout):
            _log.warning("paired with %s: %s", link.identity, concluded)
        with self._lock:
            closed = self._closed
            if not closed:
                self._links[route] = link
                self._refused.pop(route, None)
        if closed:  # while it was made; nobody else would end its lanes
            link.close()
            link.join(Deadline.after(1.0))
            return False
        link.outbox(RoomId(0)).lane.put(partial(self._connect, link, old))
        return True

    def lose(self, link: PeerLink, why: str, rooms: int, level: int) -> None:
        """Drop a link, which ``rooms`` requests depend on, and say so at a log level."""
        self.drop(link)
        _log.log(level, "lost %s: %s", link.identity, why)
        if self._events.on:
            self._events.emit(PeerLost(self._events.node, link.identity, why, rooms))

    def drop(self, link: PeerLink) -> None:
        """Forget a link; its lanes end."""
        with self._lock:
            if self._links.get(link.route) is link:
                del self._links[link.route]
            self._leaving = [*(old for old in self._leaving if not old.ended), link]
        link.lost = True
        link.close()

    def close(self, deadline: Deadline) -> None:
        """Let all lanes end and wait for them, those of lost peers as well; no peer pairs from now on."""
        with self._lock:
            self._closed = True
            links = [*self._links.values(), *self._leaving]
        for link in links:
            link.close()
        for link in links:
            if not link.join(deadline):
                _log.error("the lanes of %s did not end within the shutdown deadline", link.identity)

    def _connect(self, link: PeerLink, old: PeerLink | None) -> None:
        """Runs on the new peer's own lane, so that a hung peer delays nobody else."""
        limit = self._config.timeouts.pairing
        deadline = Deadline.after(limit)
        try:
            # Decode admits our writes again when it reads the reply: no lane may start one of the earlier
            # pairing then. What is in flight is in quarantine, and its pages are decode's to keep.
            if old is not None and not old.join(deadline):
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
            self._refuse(link.route, link.description, PairReply(self._description, (), failure))
            self.drop(link)
            self._report_failed(link.identity, failure.code, str(error))
        else:
            announce_pairing(self._events, link.identity, self._description, link.description)
            self._post(link.route, PairReply(self._description))

    def _refuse(self, route: Route, there: PeerDescription, reply: PairReply) -> None:
        """Answer that a decode rank cannot pair, and remember it: it will say which rooms end by that."""
        with self._lock:
            self._refused[route] = there.topology.unique_rank
            if len(self._refused) > MOST_PEERS:
                self._refused.popitem(last=False)
        self._post(route, reply)

    def _report_failed(self, peer: PeerIdentity, code: FailureCode, why: str) -> None:
        if self._events.on:
            self._events.emit(PairingFailed(self._events.node, peer, code, why))


def _too_many() -> Failure:
    return Failure(
        FailureCode.ENGINE,
        "prefill takes no more decode workers",
        f"{MOST_PEERS} are paired or pairing",
        "look who they are, or start more prefill workers",
    )


def _forsaken() -> Failure:
    return Failure(
        FailureCode.ENGINE,
        "prefill takes this decode process for dead",
        "it was lost for longer than quarantine.grace while bytes were on their way to it",
        "start this decode worker again, or raise quarantine.grace on prefill",
    )


def _failure(link: PeerLink, error: Exception, remark: str) -> Failure:
    code = FailureCode.INCOMPATIBLE if isinstance(error, IncompatiblePeerError) else FailureCode.ENGINE
    more = f"; {remark}" if remark and code is FailureCode.ENGINE else ""
    if isinstance(error, PDCoreError):
        return Failure(code, f"{error.happened} ({link.identity})", error.there_is + more, error.to_do)
    happened = f"connecting to {link.identity} raised"
    return Failure(code, happened, repr(error) + more, "report it to the backend's author")
