"""All decode ranks that are paired, and how they become so."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from pdcore.backend import StatePlan, StateRequest
from pdcore.config import Config
from pdcore.engine import TransferEngine
from pdcore.errors import EngineError, FailureCode, IncompatiblePeerError, PDCoreError
from pdcore.model import Deadline, RoomId
from pdcore.pairing import pairing_misfits
from pdcore.pools import Pools
from pdcore.prefill.link import PeerLink
from pdcore.wire import Failure, Message, PairReply, PeerDescription, Route

__all__ = ["Links"]

_log = logging.getLogger("pdcore.prefill")


class Links:
    """The paired decode ranks by route, and those that were lost until their lanes have ended.

    The lock guards ``_links``, which the control thread adds to, and ``_leaving``.
    """

    def __init__(
        self,
        engine: TransferEngine,
        pools: Pools,
        config: Config,
        description: PeerDescription,
        state_plan: Callable[[StateRequest], StatePlan | None],
        post: Callable[[Route, Message], None],
    ) -> None:
        self._engine = engine
        self._pools = pools
        self._config = config
        self._description = description
        self._state_plan = state_plan
        self._post = post
        self._lock = threading.Lock()
        self._links: dict[Route, PeerLink] = {}
        self._leaving: list[PeerLink] = []

    def get(self, route: Route) -> PeerLink | None:
        """Return the link of a route."""
        return self._links.get(route)

    def all(self) -> list[PeerLink]:
        """Return all links."""
        with self._lock:
            return list(self._links.values())

    def pair(self, route: Route, there: PeerDescription, old: PeerLink | None) -> bool:
        """Begin to pair with a decode rank, whose earlier link was ``old``; False if it does not fit."""
        misfits = pairing_misfits(self._description, there)
        if misfits:
            _log.warning("%s", IncompatiblePeerError(there.address, misfits))
            self._post(route, PairReply(self._description, misfits))
            return False
        link = PeerLink(route, self._description, there, self._engine, self._config.transfer.lanes_per_peer)
        if link.aux_transport is not self._description.aux_transports[0]:
            _log.warning(
                "aux rows go to %s over %s: it takes them no other way",
                link.identity,
                link.aux_transport.value,
            )
        with self._lock:
            self._links[route] = link
        link.outbox(RoomId(0)).lane.put(partial(self._connect, link, old))
        return True

    def drop(self, link: PeerLink) -> None:
        """Forget a link; its lanes end."""
        with self._lock:
            if self._links.get(link.route) is link:
                del self._links[link.route]
            self._leaving = [*(old for old in self._leaving if not old.ended), link]
        link.lost = True
        link.close()

    def close(self, deadline: Deadline) -> None:
        """Let all lanes end and wait for them, those of lost peers as well."""
        with self._lock:
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
            # Decode admits our writes again when it reads the reply: those of the earlier pairing
            # must have ended by then.
            if old is not None and not old.join(deadline):
                raise EngineError(
                    "the writes of an earlier pairing have not ended",
                    f"{limit:g} s passed",
                    "try again later",
                )
            topology = self._description.topology
            link.connect(topology, self._pools, self._state_plan, deadline)
        # An adapter may raise anything; decode must learn that it is not paired, and why.
        except Exception as error:
            _log.warning("cannot pair with %s: %s", link.identity, error)
            self._post(link.route, PairReply(self._description, (), _failure(link, error)))
            self.drop(link)
        else:
            self._post(link.route, PairReply(self._description))


def _failure(link: PeerLink, error: Exception) -> Failure:
    code = FailureCode.INCOMPATIBLE if isinstance(error, IncompatiblePeerError) else FailureCode.ENGINE
    if isinstance(error, PDCoreError):
        return Failure(code, f"{error.happened} ({link.identity})", error.there_is, error.to_do)
    return Failure(
        code, f"connecting to {link.identity} raised", repr(error), "report it to the backend's author"
    )
