"""What decode asks the bootstrap service for: a replica, or any rank; it waits for what is not there yet."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar

from pdcore.bootstrap.http.limits import Limits
from pdcore.bootstrap.ranks import MAX_TOLD, Ranks, Refused
from pdcore.bootstrap.record import CROWDED, RankGroup, RankRecord, ReplicaQuery
from pdcore.bootstrap.rooms import RoomRanks
from pdcore.bootstrap.waiting import Crowded, Waiting
from pdcore.model import Clock
from pdcore.pairing.topology import DPChoice, dp_rank_of

__all__ = ["Lookup"]

Found = TypeVar("Found")


class Lookup:
    """Finds what is registered. Belongs to the service's loop."""

    def __init__(
        self, ranks: Ranks, rooms: RoomRanks, waiting: Waiting, limits: Limits, clock: Clock
    ) -> None:
        self._ranks, self._rooms, self._waiting = ranks, rooms, waiting
        self._limits, self._clock = limits, clock

    def told(self, record: RankRecord) -> None:
        """Wake who waits for a rank that was registered just now."""
        self._waiting.tell(record.topology.dp_rank)
        self._waiting.tell(DPChoice.BY_ROOM)

    async def group(self, query: ReplicaQuery, wait: float) -> RankGroup:
        """Return all ranks of a replica, as soon as they are there.

        Raises:
            Refused: they are not, after ``wait`` seconds; or too many wait.
        """
        group = await self._wait(lambda: self._group(query), lambda: self._topic(query), wait)
        if group is None:
            raise self._not_found(query)
        return group

    async def any(self, wait: float) -> RankRecord:
        """Return some rank, as soon as there is one.

        Raises:
            Refused: there is none, after ``wait`` seconds; or too many wait.
        """
        record = await self._wait(self._ranks.any, lambda: DPChoice.BY_ROOM, wait)
        if record is None:
            to_do = "start prefill, or ask the service that it registers with"
            raise Refused(404, "no prefill rank is registered", "none of which the lease holds", to_do)
        return record

    async def _wait(
        self, find: Callable[[], Found | None], topic: Callable[[], Hashable], wait: float
    ) -> Found | None:
        end = self._clock() + (min(self._limits.wait_seconds, wait) if wait > 0 else 0.0)
        told = True
        try:
            while (found := find()) is None and told and (left := end - self._clock()) > 0:
                told = await self._waiting.wait(topic(), left)
        except Crowded:
            there_is = f"{self._limits.waiting} wait, and this one has waited for the longest time"
            raise Refused(CROWDED, "more look-ups wait than may", there_is, "ask again") from None
        return found

    def _not_found(self, query: ReplicaQuery) -> Refused:
        dp_rank, known = self._dp_rank(query), f"DP ranks {self._ranks.dp_ranks()}"
        if dp_rank is None:
            to_do = "have prefill call register_dp_rank(room), or start it"
            return Refused(404, f"nobody took room {query.room}", f"{known} are registered", to_do)
        ranks = sorted(record.topology.unique_rank for record in self._ranks.of(dp_rank))
        return Refused(
            404,
            f"prefill DP rank {dp_rank} is not registered in full",
            f"unique ranks {ranks[:MAX_TOLD]} of DP rank {dp_rank}, {known}",
            "start the missing prefill ranks, or ask for a DP rank that runs",
        )

    def _dp_rank(self, query: ReplicaQuery) -> int | None:
        if query.choice is DPChoice.QUERY:
            return self._rooms.of(query.room)
        if query.choice is DPChoice.BY_ROOM:
            some = self._ranks.any()
            return dp_rank_of(query.room, some.topology.dp_size) if some is not None else None
        return query.choice

    def _group(self, query: ReplicaQuery) -> RankGroup | None:
        dp_rank = self._dp_rank(query)
        return self._ranks.group(dp_rank) if dp_rank is not None else None

    def _topic(self, query: ReplicaQuery) -> Hashable:
        if query.choice is DPChoice.BY_ROOM:
            return query.choice  # any rank may be the first that tells how many replicas there are
        dp_rank = self._dp_rank(query)
        return dp_rank if dp_rank is not None else (query.choice, query.room)
