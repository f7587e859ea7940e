"""All prefill ranks that decode knows: found through bootstrap, asked to pair, paired."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable
from functools import partial

from pdcore.bootstrap import BootstrapClient
from pdcore.bootstrap.record import RankGroup
from pdcore.config import Timeouts
from pdcore.decode.revocation import Revocations
from pdcore.decode.source import PrefillSource
from pdcore.engine import TransferEngine
from pdcore.errors import FailureCode, IncompatiblePeerError, KVTransferError, PDCoreError
from pdcore.liveness import Heartbeats
from pdcore.model import Deadline
from pdcore.pairing import pairing_misfits
from pdcore.topology import map_ranks
from pdcore.wire import Channel, PairReply, PairRequest, PeerDescription, Route

__all__ = ["Sources"]

Lost = Callable[[PrefillSource, KVTransferError], None]


class Sources:
    """Prefill ranks by bootstrap address and DP rank. The lock guards ``_sources`` and ``_routes``.

    ``lost`` is called on the control thread with a source that could not be paired.
    """

    def __init__(
        self,
        engine: TransferEngine,
        description: PeerDescription,
        timeouts: Timeouts,
        channel: Channel,
        heartbeats: Heartbeats[Route],
        lost: Lost,
    ) -> None:
        self._engine = engine
        self._description = description
        self._timeouts = timeouts
        self._channel = channel
        self._heartbeats = heartbeats
        self._lost = lost
        self._http = BootstrapClient("decode")
        self._revocations = Revocations(engine)
        self._lock = threading.Lock()
        self._sources: dict[tuple[str, int], PrefillSource] = {}
        self._routes: dict[Route, PrefillSource] = {}

    def of(self, route: Route) -> PrefillSource | None:
        """Return the source that answers on a route."""
        return self._routes.get(route)

    def routes(self) -> list[Route]:
        """Return the routes of all sources that were asked."""
        with self._lock:
            return list(self._routes)

    def overdue(self) -> list[PrefillSource]:
        """Return the sources that did not pair by their deadline."""
        with self._lock:
            return [s for s in self._sources.values() if s.overdue]

    def find(self, bootstrap: str, dp_rank: int) -> PrefillSource:
        """Return a source, looking for it if it is not known."""
        key = (bootstrap, dp_rank)
        with self._lock:
            source = self._sources.get(key)
            if source is not None and not source.lost:
                return source
            deadline = Deadline.after(self._timeouts.pairing)
            source = self._sources[key] = PrefillSource(bootstrap, dp_rank, deadline)
        future = self._http.resolve(bootstrap, dp_rank, deadline.within(self._timeouts.bootstrap))
        future.add_done_callback(lambda f: self._channel.call(partial(self._found, source, f)))
        return source

    def drop(self, source: PrefillSource, drained: Callable[[], None]) -> None:
        """Forget a lost source; ``drained`` is called once the engine proved that it writes no more."""
        with self._lock:
            key = (source.bootstrap, source.dp_rank)
            if self._sources.get(key) is source:
                del self._sources[key]
            if source.route is not None:
                self._routes.pop(source.route, None)
        if source.route is not None:
            self._heartbeats.forget(source.route)
            self._channel.hang_up(source.route)
        if source.description is not None:
            self._revocations.start(source.identity.incarnation, source.description.endpoint, drained)

    def answered(self, source: PrefillSource, reply: PairReply) -> None:
        """Take prefill's answer; the engine admits its writes before any request goes out."""
        misfits = reply.misfits or pairing_misfits(reply.description, self._description)
        if misfits:
            error = IncompatiblePeerError(str(source), misfits)
            self._lost(source, _as_failure(FailureCode.INCOMPATIBLE, error))
        elif reply.failure is not None:
            self._lost(source, reply.failure.error())
        else:
            threading.Thread(
                target=self._admit,
                args=(source, reply.description),
                name=f"pdcore-admit-{reply.description.incarnation[:8]}",
                daemon=True,
            ).start()

    def close_revocations(self, deadline: Deadline) -> None:
        """End the threads that wait for lost peers."""
        self._revocations.close(deadline)

    def close(self, deadline: Deadline) -> None:
        """End the bootstrap client."""
        self._http.close(deadline)

    def _found(self, source: PrefillSource, future: concurrent.futures.Future[RankGroup]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._lost(source, _as_failure(FailureCode.PEER_LOST, error))
            return
        ranks = future.result().ranks
        wanted = map_ranks(self._description.topology).prefill_ranks[0]
        # A group of another size is refused by pairing, which names both sizes.
        route = self._channel.dial(ranks[min(wanted, len(ranks) - 1)].address)
        if source.asked(route):
            with self._lock:
                self._routes[route] = source
            self._heartbeats.track(route, time.monotonic())
            self._channel.post(route, PairRequest(self._description))

    def _admit(self, source: PrefillSource, description: PeerDescription) -> None:
        """Runs on a thread of its own: an earlier pairing with the same writer must be revoked first."""
        try:
            if not self._revocations.finish(description.incarnation, source.deadline):
                raise KVTransferError(
                    FailureCode.PEER_LOST,
                    f"{source} cannot pair again",
                    "its writes of the earlier pairing have not ended",
                    "look whether that worker is stopped",
                )
            self._engine.admit(description.endpoint)
        # An adapter may raise anything; the rooms that wait for the pairing must end.
        except Exception as error:
            self._channel.call(partial(self._lost, source, _as_failure(FailureCode.ENGINE, error)))
        else:
            source.pair(description)


def _as_failure(code: FailureCode, error: BaseException) -> KVTransferError:
    if isinstance(error, KVTransferError):
        return error
    if isinstance(error, PDCoreError):
        return KVTransferError(code, error.happened, error.there_is, error.to_do)
    return KVTransferError(code, "pairing with prefill failed", repr(error), "look at both sides' logs")
