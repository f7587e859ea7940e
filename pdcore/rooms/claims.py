"""Which request may be written to which page, slot and item: each has one owner at a time."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Protocol

import attrs
import numpy as np
import numpy.typing as npt

from pdcore.errors import PlanError, RoomError
from pdcore.host.fork import Birthplace
from pdcore.memory.pools import Pools
from pdcore.model import KVPoll, RoomId
from pdcore.plan import IndexArray

__all__ = ["Claim", "Claims", "Holder"]


class Holder(Protocol):
    """A room that bytes may land in."""

    @property
    def room(self) -> RoomId:
        """The room."""

    def poll(self) -> KVPoll:
        """Return its state."""

    def release_safe(self) -> bool:
        """Return whether no byte of it can land any more."""


Items = list[tuple[int, IndexArray]]
"""Some items of some pools: the pool's number and indices, none of them empty."""


@attrs.frozen(eq=False)
class Claim:
    """What one room holds, marked in the pools by the numbers from ``first`` on."""

    holder: Holder
    first: int
    items: Items

    @property
    def count(self) -> int:
        """How many items it has."""
        return sum(len(indices) for _, indices in self.items)


class Claims:
    """The owners of the pages, aux slots and state items of one rank's pools, whichever manager gave them.

    One number per item of every pool, 0 while nobody has it, so that a request is checked by a few numpy
    calls. A claim ends with ``free``, or when another room wants its items and its holder is safe by then.
    The lock guards ``_owners``, ``_held`` and ``_next``; no holder is asked under it.
    """

    def __init__(self, pools: Pools) -> None:
        aux = pools.aux.slots if pools.aux is not None else 0
        states = [(pool.component.kind, pool.component.num_items) for pool in pools.state]
        self._names = ("page", "aux slot", *(f"item of state {kind!r}" for kind, _ in states))
        self._lock = threading.Lock()
        self._owners = [np.zeros(size, np.int64) for size in (pools.num_pages, aux, *(n for _, n in states))]
        self._held: dict[int, Claim] = {}
        self._next = 1
        self._birthplace = Birthplace()

    @classmethod
    def of(cls, pools: Pools) -> Claims:
        """Return those of some pools: managers that share them share these. A forked child has its own."""
        with _SHARING:
            claims = _SHARED.get(pools)
            if claims is None or claims._birthplace.left:
                claims = _SHARED[pools] = cls(pools)
            return claims

    def __len__(self) -> int:
        return len(self._held)

    def take(
        self, holder: Holder, pages: IndexArray, aux_index: int | None, state: Sequence[IndexArray]
    ) -> Claim:
        """Give a room its pages, aux slot and state items, which lie inside their pools: all or nothing.

        Raises:
            PlanError: one is named twice.
            RoomError: a room has one that is open, or may still be written to.
        """
        lists = (pages, np.array([] if aux_index is None else [aux_index], np.int64), *state)
        items = [(pool, indices) for pool, indices in enumerate(lists) if len(indices)]
        while True:
            with self._lock:
                blocking = self._blocking(items)
                if not blocking:
                    return self._give(holder, items)
            for claim in blocking:
                if not claim.holder.release_safe():
                    raise self._in_use(holder.room, items, claim)
                self.free(claim)

    def foreign(self, claim: Claim, pool: int, items: IndexArray) -> str | None:
        """Return the first of some items of a pool that a claim does not have; they lie inside the pool."""
        marks = self._owners[pool][items]
        bad = np.flatnonzero((marks < claim.first) | (marks >= claim.first + claim.count))
        return f"{self._names[pool]} {int(items[bad[0]])}" if len(bad) else None

    def free(self, claim: Claim | None) -> None:
        """End a claim, if there is one; idempotent, from any thread."""
        with self._lock:
            if claim is not None and self._held.pop(claim.first, None) is not None:
                self._unmark(claim.items)

    def _blocking(self, items: Items) -> list[Claim]:
        """Return the claims that have one of some items."""
        marks = [self._owners[pool][indices] for pool, indices in items]
        if not any(map(np.count_nonzero, marks)):
            return []
        taken = np.concatenate([mark[mark > 0] for mark in marks])
        firsts = np.fromiter(self._held, np.int64, len(self._held))  # they only grow
        owning = np.unique(np.searchsorted(firsts, taken, "right")) - 1
        return [self._held[first] for first in firsts[owning].tolist()]

    def _give(self, holder: Holder, items: Items) -> Claim:
        """Mark free items with numbers of their own: who is marked over was named before."""
        number = first = self._next
        for pool, indices in items:
            owners, numbers = self._owners[pool], np.arange(number, number + len(indices))
            owners[indices] = numbers
            again = owners[indices] != numbers
            if np.count_nonzero(again):
                self._unmark(items)
                raise _twice(holder.room, self._names[pool], indices, again)
            number += len(indices)
        self._next = max(number, first + 1)  # of nothing as well, by a name of its own
        claim = Claim(holder, first, items)
        self._held[first] = claim
        return claim

    def _unmark(self, items: Items) -> None:
        for pool, indices in items:
            self._owners[pool][indices] = 0

    def _in_use(self, room: RoomId, items: Items, claim: Claim) -> RoomError:
        theirs = dict(claim.items)
        shared = [(pool, np.intersect1d(ours, theirs[pool])) for pool, ours in items if pool in theirs]
        pool, indices = next(found for found in shared if len(found[1]))
        name, other, status = self._names[pool], claim.holder.room, claim.holder.poll()
        why = f"{status.name}, and may still be written to" if status.terminal else status.name
        more = f"; {len(indices)} such, {_some(indices)}" if len(indices) > 1 else ""
        return RoomError(
            f"{name} {int(indices[0])} of room {room} belongs to room {other}",
            f"room {other} is {why}{more}",
            f"give each request its own, and use them again once release_safe() of room {other} is true",
        )


_SHARED: weakref.WeakKeyDictionary[Pools, Claims] = weakref.WeakKeyDictionary()
_SHARING = threading.Lock()
"""Guards ``_SHARED``."""


def _twice(room: RoomId, name: str, indices: IndexArray, again: npt.NDArray[np.bool_]) -> PlanError:
    repeated = np.unique(indices[again])
    return PlanError(
        f"{name} {int(repeated[0])} occurs twice in room {room}",
        f"{len(indices)} are named, of which {len(repeated)} more than once: {_some(repeated)}",
        "name each once: what is written there first would be lost",
    )


def _some(indices: IndexArray) -> str:
    return ", ".join(map(str, indices[:8].tolist())) + (", ..." if len(indices) > 8 else "")
