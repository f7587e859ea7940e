"""Prefill groups, looked up at their bootstrap services: who sends to this rank, and who only hears of it."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from pdcore.bootstrap import BootstrapClient, RankRecord, ReplicaQuery
from pdcore.bootstrap.record import RankGroup
from pdcore.config import AuthKey, Timeouts
from pdcore.decode.facts import KnownGroups, as_failure
from pdcore.errors import EngineError, FailureCode
from pdcore.host.shortage import require_descriptors
from pdcore.model import Deadline, PeerIdentity, Role, RoomId
from pdcore.pairing import PeerDescription
from pdcore.pairing.topology import DPChoice, dp_rank_of, map_ranks, topology_misfits
from pdcore.protocol.actions import Find
from pdcore.protocol.groups import GroupKey, Member
from pdcore.protocol.stimuli import GroupFailed, GroupFound, Stimulus

__all__ = ["DIAL_DESCRIPTORS", "GroupLookup"]

DIAL_DESCRIPTORS = 8
"""What one connection of the control channel takes, with what watches over it."""


class GroupLookup:
    """Owns the bootstrap client. ``paired_at`` tells whether a group of a service is paired.

    ``_dp_sizes`` remembers by bootstrap address what tells the DP rank of a room without a look-up; the lock
    guards it.
    """

    def __init__(
        self,
        description: PeerDescription,
        timeouts: Timeouts,
        auth_key: AuthKey | None,
        paired_at: Callable[[str], bool],
        feed: Callable[[Stimulus], None],
    ) -> None:
        self._description, self._timeouts, self._feed = description, timeouts, feed
        self._http = BootstrapClient("decode", auth_key)
        self.known = KnownGroups(self._http, timeouts.bootstrap, time.monotonic, paired_at)
        self._lock = threading.Lock()
        self._dp_sizes: dict[str, int] = {}

    def key(self, bootstrap: str, choice: int | DPChoice, room: RoomId) -> GroupKey:
        """Return what names the group that a choice means: its DP rank, if that is known without asking."""
        size = self._dp_sizes.get(bootstrap)
        if choice is DPChoice.BY_ROOM and size is not None:
            choice = dp_rank_of(room, size)
        return GroupKey(bootstrap, choice, room if isinstance(choice, DPChoice) else None)

    def find(self, do: Find) -> None:
        """Look a group up; never waits."""
        key, timeouts = do.key, self._timeouts
        query = ReplicaQuery(key.choice, key.room or RoomId(0))
        try:
            require_descriptors(DIAL_DESCRIPTORS, f"to look for prefill at {key.bootstrap}")
            deadline = Deadline.after(min(timeouts.pairing, timeouts.bootstrap))
            future = self._http.resolve(key.bootstrap, query, deadline)
        except EngineError as shortage:
            future = concurrent.futures.Future()
            future.set_exception(shortage)
        future.add_done_callback(partial(self._found, key))

    def trouble(self, bootstrap: str) -> str:
        """Return how often in a row a bootstrap service was not reached, and why; "" if it was."""
        return self._http.trouble(bootstrap)

    def forget(self, bootstraps: Iterable[str]) -> None:
        """Groups were lost: what is known of them is asked for anew."""
        with self._lock:
            for bootstrap in bootstraps:
                self._dp_sizes.pop(bootstrap, None)
        self.known.drop(bootstraps)

    def close(self, deadline: Deadline) -> None:
        """End the bootstrap client."""
        self._http.close(deadline)

    def _found(self, key: GroupKey, future: concurrent.futures.Future[RankGroup]) -> None:
        """Take an answer, as a rule on the client's thread."""
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self.forget([key.bootstrap])
            code = FailureCode.ENGINE if isinstance(error, EngineError) else FailureCode.PEER_LOST
            self._feed(GroupFailed(key, as_failure(code, error)))
            return
        ranks = future.result().ranks
        replica = ranks[0].topology
        with self._lock:
            self._dp_sizes[key.bootstrap] = replica.dp_size
        senders, others = self._members(ranks)
        self._feed(GroupFound(key, senders, others, GroupKey(key.bootstrap, replica.dp_rank)))

    def _members(self, ranks: Sequence[RankRecord]) -> tuple[tuple[Member, ...], tuple[Member, ...]]:
        """Return which ranks of a group send to this one, and which others are told of each room."""
        ours = self._description
        theirs, units = ranks[0].topology, ours.layout.units
        if topology_misfits(theirs, ours.topology, *units):
            # Pairing refuses it on both sides, and names every other misfit as well. All ranks of the two
            # groups shall hear of it.
            first = ours.topology.unique_rank
            some = ranks[first :: ours.topology.group_size] or ranks[-1:]
            return tuple(map(_member, some)), ()
        sharded = any(component.sharded for component in ours.state)
        mapping = map_ranks(theirs, ours.topology, *units, sharded_state=sharded)
        senders = tuple(_member(ranks[rank]) for rank in mapping.prefill_ranks)
        return senders, tuple(_member(ranks[rank]) for rank in mapping.dummies)


def _member(record: RankRecord) -> Member:
    identity = PeerIdentity(Role.PREFILL, record.incarnation, record.address)
    return Member(identity, record.topology.unique_rank)
