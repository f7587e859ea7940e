"""Which prefill ranks are registered: told and renewed by prefill, and forgotten some leases later."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import attrs

from pdcore.bootstrap.http.refusal import Refusal
from pdcore.bootstrap.record import RankGroup, RankRecord
from pdcore.model import Clock, Incarnation

__all__ = ["Ranks", "Refused"]

MAX_LEASE = 3600.0
MAX_REPLACED = 16
MAX_TOLD = 64
"""Numbers and addresses that an answer lists at most."""
STALE_LEASES = 10
"""A rank that did not renew for this many leases is forgotten; until then health reports it."""
_FULL_SECONDS = 1.0


class Refused(Exception):  # noqa: N818 - an answer
    """What the service answers instead: an HTTP status and the three parts of an error."""

    def __init__(self, status: int, happened: str, there_is: str, to_do: str) -> None:
        super().__init__(status, happened)
        self.status, self.refusal = status, Refusal(happened, there_is, to_do)


@attrs.frozen
class _Entry:
    record: RankRecord
    renewed_at: float
    replaced: tuple[Incarnation, ...] = ()

    def fresh(self, now: float, leases: float = 1.0) -> bool:
        return now - self.renewed_at <= self.record.lease * leases


class Ranks:
    """Ranks by DP replica and unique rank, ``most`` of them. Belongs to the service's loop."""

    def __init__(self, clock: Clock, most: int) -> None:
        self._clock, self._most = clock, most
        self._replicas: dict[int, dict[int, _Entry]] = {}
        self._count = 0
        self._full_until = 0.0

    def put(self, record: RankRecord) -> None:
        """Register a rank or renew its lease.

        Raises:
            Refused: the lease is out of range, a newer process has the rank, or there are too many.
        """
        if not 0 < record.lease <= MAX_LEASE:
            there_is = f"{record.lease} s"
            raise Refused(400, "a lease is out of range", there_is, f"use 0 < lease <= {MAX_LEASE:g} s")
        dp_rank, rank = record.topology.dp_rank, record.topology.unique_rank
        old = self._replicas.get(dp_rank, {}).get(rank)
        if old is None:
            self._make_room()
            self._count += 1
        replaced = old.replaced if old else ()
        if record.incarnation in replaced:
            raise Refused(
                409,
                f"incarnation {record.incarnation[:8]} was replaced by a newer one of the same rank",
                f"{old.record.address if old else ''} is registered now",
                "end the older worker, or give it a rank of its own",
            )
        if old is not None and old.record.incarnation != record.incarnation:
            replaced = (*replaced[1 - MAX_REPLACED :], old.record.incarnation)
        self._replicas.setdefault(dp_rank, {})[rank] = _Entry(record, self._clock(), replaced)

    def withdraw(self, incarnation: str) -> None:
        """Forget what a process registered."""
        self._forget([k for k, entry in self._entries() if entry.record.incarnation == incarnation])

    def group(self, dp_rank: int) -> RankGroup | None:
        """Return all ranks of a DP replica, if they are registered in full."""
        ranks = {record.topology.unique_rank: record for record in self.of(dp_rank)}
        size = max((r.topology.group_size for r in ranks.values()), default=0)
        # The length first: a stranger may claim a group of any size.
        if not size or len(ranks) != size or set(ranks) != set(range(size)):
            return None
        return RankGroup(tuple(ranks[rank] for rank in range(size)))

    def of(self, dp_rank: int) -> list[RankRecord]:
        """Return the ranks of a DP replica whose leases hold."""
        now = self._clock()
        return [e.record for e in self._replicas.get(dp_rank, {}).values() if e.fresh(now)]

    def any(self) -> RankRecord | None:
        """Return some rank whose lease holds."""
        now = self._clock()
        return next((e.record for _, e in self._entries() if e.fresh(now)), None)

    def dp_ranks(self) -> list[int]:
        """Return DP ranks of which some rank's lease holds, ``MAX_TOLD`` of them."""
        return sorted(islice((dp_rank for dp_rank in self._replicas if self.of(dp_rank)), MAX_TOLD))

    def health(self) -> tuple[int, list[str]]:
        """Return how many leases hold, and the addresses of those that don't, ``MAX_TOLD`` of them."""
        now = self._clock()
        self._forget([key for key, entry in self._entries() if not entry.fresh(now, STALE_LEASES)])
        stale = [entry.record.address for _, entry in self._entries() if not entry.fresh(now)]
        return self._count - len(stale), stale[:MAX_TOLD]

    def _make_room(self) -> None:
        if self._count < self._most:
            return
        now = self._clock()
        if now >= self._full_until:  # looking at all of them is not done for each of a crowd
            self._full_until = now + _FULL_SECONDS
            self._forget([key for key, entry in self._entries() if not entry.fresh(now)])
        if self._count >= self._most:
            raise Refused(507, "too many ranks are registered", f"{self._most}", "restart the service")

    def _entries(self) -> Iterator[tuple[tuple[int, int], _Entry]]:
        for dp_rank, replica in self._replicas.items():
            for rank, entry in replica.items():
                yield (dp_rank, rank), entry

    def _forget(self, keys: list[tuple[int, int]]) -> None:
        for dp_rank, rank in keys:
            del self._replicas[dp_rank][rank]
            if not self._replicas[dp_rank]:
                del self._replicas[dp_rank]
        self._count -= len(keys)
