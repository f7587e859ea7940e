"""What the scheduler side decides: which request asks which room for what, and which blocks are kept.

Pure: plain values in, plain values out; vLLM's objects are the connector's matter. One thread calls it.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

import attrs

from pdcore_vllm.log import log

__all__ = ["Key", "Report", "Room", "Schedule", "Work"]

ROOM_BITS = 62
REMEMBERED = 10_000
"""Rooms that were used: a request which comes again with the same parameters does not ask in vain."""
WATCH_SENDS, WATCH_UNSAFE = 1.0, 5.0
"""Seconds for which an idle engine looks after blocks of a prompt that decode shall fetch, and after those of
a transfer that failed. Each look costs: for a second after it, vLLM's processes spin."""


Key = tuple[str, int]
"""A request and its room: the name of a request may come again while an earlier room of it is open."""


@attrs.frozen
class Room:
    """A request's room, and its blocks in order. On decode ``bootstrap`` says where prefill is, and
    ``prefix`` tokens before the blocks are here already."""

    request: str
    room: int
    blocks: tuple[int, ...] = ()
    bootstrap: str = ""
    prefix: int = 0

    @property
    def key(self) -> Key:
        """What tells it from all others of an engine."""
        return self.request, self.room


@attrs.define
class Work:
    """What the workers shall do in a step: open rooms, decline others with a reason, give up requests.

    ``idle``: the step computes nothing.
    """

    rooms: list[Room] = attrs.field(factory=list)
    declines: list[tuple[Room, str]] = attrs.field(factory=list)
    aborts: list[Key] = attrs.field(factory=list)
    idle: bool = False


@attrs.define
class Report:
    """What workers tell of rooms that ended: at how many of them late bytes may still reach the blocks
    (``unsafe``), how many need the blocks no more (``safe``); and why loads failed, by request."""

    unsafe: Counter[Key] = attrs.field(factory=Counter)
    safe: Counter[Key] = attrs.field(factory=Counter)
    failures: dict[str, str] = attrs.field(factory=dict)

    def __bool__(self) -> bool:
        return bool(self.unsafe or self.safe or self.failures)

    def merged(self, other: Report) -> Report:
        """Return what two workers tell."""
        return Report(self.unsafe + other.unsafe, self.safe + other.safe, other.failures | self.failures)


class Schedule:
    """The scheduler's side of one engine, which ``loads`` (decode) or not; ``pool`` is vLLM's block pool.

    Blocks that workers may yet read or write although vLLM is done with their request have a reference more
    in the pool, until all workers that had them have said that they are safe. An engine without other work is
    stepped on for a while, so that they come back soon. Then it may sleep: who needs blocks wakes it, and the
    first step brings back what has become safe.
    """

    def __init__(self, block_size: int, workers: int, *, loads: bool) -> None:
        self.bootstrap = ""
        self.pool: Any = None
        self._block_size, self._workers, self._loads = block_size, workers, loads
        self._next = Work()
        self._loading: dict[str, Room] = {}
        self._ended = set[str]()
        self._spent: dict[tuple[str, int], str] = {}
        self._failures: dict[str, str] = {}
        self._held: dict[Key, tuple[tuple[int, ...], int]] = {}
        self._watch_until = 0.0

    def matched(self, request: str, params: dict[str, Any] | None, missing: int) -> int | None:
        """Return how many of the ``missing`` tokens come from prefill; None: it is not known yet.

        Of several requests with one room the first loads it, and the others wait for what it leaves in the
        prefix cache.
        """
        source = self._source(request, params)
        user = self._spent.get(source, request) if source is not None else ""
        if user in self._loading and user != request:
            return None
        return max(0, missing) if user == request and request not in self._loading else 0

    def allocated(
        self, request: str, params: dict[str, Any], blocks: list[int], tokens: int, loaded: int
    ) -> None:
        """A request has its blocks: ``tokens`` of its prompt go there, the last ``loaded`` by a transfer."""
        room, prefix = self._take(request, params), tokens - loaded
        if room is not None and loaded:
            wanted = tuple(blocks[prefix // self._block_size : -(-tokens // self._block_size)])
            self._loading[request] = room = attrs.evolve(room, blocks=wanted, prefix=prefix)
            self._next.rooms.append(room)
        elif room is not None:
            self._next.declines.append((room, "decode has all of its tokens"))

    def finished(
        self, request: str, params: dict[str, Any] | None, blocks: list[int], tokens: int, *, complete: bool
    ) -> dict[str, Any] | None:
        """A request has ended; return what its answer tells.

        ``complete``: it was computed to its end, so that decode may have its ``blocks``.
        """
        failure, unasked = self._failures.pop(request, None), self._take(request, params)
        if request in self._loading:
            self._ended.add(request)
            self._next.aborts.append(self._loading[request].key)
        elif unasked is not None:
            self._next.declines.append((unasked, "the request ended before decode began with it"))
        if not (params and params.get("do_remote_decode") and complete and blocks):
            return {"pdcore_failure": failure} if failure else None
        prompt = tuple(blocks[: -(-tokens // self._block_size)])
        room = Room(request, secrets.randbits(ROOM_BITS), prompt)
        self._hold(room, self._workers, WATCH_SENDS)
        self._next.rooms.append(room)
        here = {"pdcore_bootstrap": self.bootstrap, "pdcore_room": room.room}
        return {"do_remote_prefill": True, "do_remote_decode": False, **here}

    def work(self, *, idle: bool) -> Work:
        """Return what is to begin, once."""
        work, self._next = self._next, Work()
        work.idle = idle
        return work

    def reported(self, received: Iterable[str], report: Report) -> None:
        """Take what the workers tell, before vLLM frees blocks of requests that ended."""
        for (request, number), workers in report.unsafe.items():
            if request in self._loading and self._loading[request].room == number:
                self._hold(self._loading[request], workers, WATCH_UNSAFE)
        for request, why in report.failures.items():
            if request in self._loading and request not in self._ended:  # else its answer is out
                self._failures[request] = why
        for request in received:
            self._loading.pop(request, None)
            self._ended.discard(request)
        for key, workers in report.safe.items():
            self._release(key, workers)

    @property
    def watching(self) -> bool:
        """Whether an engine without other work shall look again for blocks that have become safe."""
        return bool(self._held) and time.monotonic() < self._watch_until

    def _take(self, request: str, params: dict[str, Any] | None) -> Room | None:
        """Return a request's room if nobody has asked for it; vLLM asks again after a preemption."""
        source = self._source(request, params)
        if source is None or params is None:
            return None
        params["do_remote_prefill"] = False
        if self._spent.setdefault(source, request) != request:
            return None
        if len(self._spent) > REMEMBERED:
            del self._spent[next(iter(self._spent))]
        return Room(request, source[1], bootstrap=source[0])

    def _source(self, request: str, params: dict[str, Any] | None) -> tuple[str, int] | None:
        """Return where a request's prefill is, and in which room; None where nothing is to be loaded, which
        its parameters say from then on: vLLM may ask in every step."""
        if not params or not params.get("do_remote_prefill"):
            return None
        bootstrap, room = params.get("pdcore_bootstrap"), params.get("pdcore_room")
        if self._loads and isinstance(bootstrap, str) and type(room) is int:
            return bootstrap, room
        why = "its kv_transfer_params name no room of pdcore" if self._loads else "this engine is a prefill"
        params["do_remote_prefill"] = False
        log.warning("request %s is computed here: %s", request, why)
        return None

    def _hold(self, room: Room, workers: int, watch: float) -> None:
        kept, before = self._held.get(room.key, (room.blocks, 0))
        if not before:
            self.pool.touch([self.pool.blocks[block] for block in kept])
        self._held[room.key] = (kept, before + workers)
        self._watch_until = max(self._watch_until, time.monotonic() + watch)

    def _release(self, key: Key, workers: int) -> None:
        blocks, before = self._held.pop(key, ((), 0))
        if before > workers:
            self._held[key] = (blocks, before - workers)
        else:
            self.pool.free_blocks([self.pool.blocks[block] for block in reversed(blocks)])
