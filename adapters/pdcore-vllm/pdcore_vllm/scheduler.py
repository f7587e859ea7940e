"""What the scheduler side decides: which request asks which room for what, and who keeps which blocks.

Pure: plain values in, plain values out; vLLM's objects are the connector's matter. One thread calls it.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import attrs

from pdcore_vllm.guard import log

__all__ = ["Decline", "Load", "Report", "Schedule", "Send", "Work"]

ROOM_BITS = 62
REMEMBERED = 10_000
"""Rooms that were used (a request which comes again with the same parameters does not ask in vain), and
failures that were not told yet."""
WATCH_SENDS, WATCH_UNSAFE = 1.0, 5.0
"""Seconds for which an idle engine looks after blocks of a prompt that decode shall fetch, and after those of
a transfer that failed. Each look costs: for a second after it, vLLM's processes spin."""
Key = TypeVar("Key")


@attrs.frozen
class Send:
    """Prefill: send these blocks, in order, to whom asks for the room."""

    request: str
    room: int
    blocks: tuple[int, ...]


@attrs.frozen
class Load:
    """Decode: have these blocks, in order, filled from a room; ``prefix`` tokens before them are here."""

    request: str
    bootstrap: str
    room: int
    blocks: tuple[int, ...]
    prefix: int


@attrs.frozen
class Decline:
    """Decode: nobody here wants this room."""

    bootstrap: str
    room: int
    reason: str


@attrs.frozen
class Work:
    """What the workers shall begin in a step. ``idle``: the step computes nothing."""

    sends: tuple[Send, ...] = ()
    loads: tuple[Load, ...] = ()
    declines: tuple[Decline, ...] = ()
    aborts: tuple[str, ...] = ()
    idle: bool = False


@attrs.frozen
class Report:
    """What workers tell beside which requests ended: blocks that late bytes may still reach or leave
    (``unsafe``, by request), how many workers had them and have them no more (``safe``), and why requests
    failed."""

    unsafe: Mapping[str, tuple[tuple[int, ...], int]] = attrs.field(factory=dict)
    safe: Mapping[str, int] = attrs.field(factory=dict)
    failures: Mapping[str, str] = attrs.field(factory=dict)

    def __bool__(self) -> bool:
        return bool(self.unsafe or self.safe or self.failures)

    def merged(self, other: Report) -> Report:
        """Return what two workers tell."""
        unsafe = dict(self.unsafe)
        for request, (blocks, workers) in other.unsafe.items():
            unsafe[request] = (blocks, workers + unsafe.get(request, ((), 0))[1])
        safe = {
            request: self.safe.get(request, 0) + other.safe.get(request, 0)
            for request in (*self.safe, *other.safe)
        }
        return Report(unsafe, safe, {**other.failures, **self.failures})


class Pool(Protocol):
    """The part of vLLM's block pool that keeps blocks out of reuse."""

    @property
    def blocks(self) -> Sequence[Any]: ...
    def touch(self, blocks: Sequence[Any]) -> None: ...
    def free_blocks(self, ordered_blocks: Iterable[Any]) -> None: ...


class Holds:
    """Blocks that workers may yet read or write although vLLM is done with their request: each has a
    reference more, until all workers that had it have said that it is safe.

    An engine without other work is stepped on for a while, so that they come back soon. Then it may sleep:
    who needs blocks wakes it, and the first step brings back what has become safe.
    """

    def __init__(self) -> None:
        self.pool: Pool | None = None
        self._held: dict[str, tuple[tuple[int, ...], int]] = {}
        self._until = 0.0

    @property
    def watched(self) -> bool:
        """Whether an engine without other work shall look again."""
        return bool(self._held) and time.monotonic() < self._until

    def hold(self, request: str, blocks: tuple[int, ...], workers: int, watch: float) -> None:
        """Keep blocks that still belong to their request, and look after them for ``watch`` seconds."""
        kept, before = self._held.get(request, (blocks, 0))
        if self.pool is not None and not before:
            self.pool.touch([self.pool.blocks[block] for block in kept])
        self._held[request] = (kept, before + workers)
        self._until = max(self._until, time.monotonic() + watch)

    def release(self, request: str, workers: int) -> None:
        """Give them back once nobody needs them kept."""
        blocks, before = self._held.pop(request, ((), 0))
        if before > workers:
            self._held[request] = (blocks, before - workers)
        elif self.pool is not None:
            self.pool.free_blocks([self.pool.blocks[block] for block in reversed(blocks)])


@attrs.frozen
class _Source:
    """Where a request's prefill is, as its ``kv_transfer_params`` say."""

    bootstrap: str
    room: int

    @classmethod
    def of(cls, params: Mapping[str, Any] | None) -> _Source | None:
        """Return it; None if nobody prefilled, or the parameters are not ours."""
        if not params or not params.get("do_remote_prefill"):
            return None
        bootstrap, room = params.get("pdcore_bootstrap"), params.get("pdcore_room")
        if isinstance(bootstrap, str) and isinstance(room, int) and not isinstance(room, bool):
            return cls(bootstrap, room)
        return None


class _Recent(OrderedDict[Key, str]):
    """The latest of what was put in."""

    def __setitem__(self, key: Key, value: str) -> None:
        super().__setitem__(key, value)
        if len(self) > REMEMBERED:
            self.popitem(last=False)


class Schedule:
    """The scheduler's side of one engine."""

    def __init__(self, block_size: int, workers: int) -> None:
        self.bootstrap = ""
        self.holds = Holds()
        self._workers = workers
        self._block_size = block_size
        self._next = Work()
        self._loading: dict[str, _Source] = {}
        self._spent: _Recent[_Source] = _Recent()
        self._failures: _Recent[str] = _Recent()

    def matched(self, request: str, params: Mapping[str, Any] | None, missing: int) -> int | None:
        """Return how many of the ``missing`` tokens come from prefill; None: it is not known yet.

        Of several requests with one room the first loads it, and the others wait for what it leaves in the
        prefix cache.
        """
        source = _Source.of(params)
        if source is None:
            if params and params.get("do_remote_prefill"):
                log.warning(
                    "request %s is computed here: its kv_transfer_params name no room of pdcore", request
                )
            return 0
        user = self._spent.get(source, request)
        if user == request:
            return max(0, missing) if request not in self._loading else 0
        return None if user in self._loading else 0

    def allocated(
        self, request: str, params: dict[str, Any] | None, blocks: Sequence[int], tokens: int, loaded: int
    ) -> None:
        """A request has its blocks: ``tokens`` of its prompt go there, the last ``loaded`` by a transfer."""
        source = _Source.of(params)
        if source is None or params is None:
            return
        params["do_remote_prefill"] = False  # vLLM asks again after a preemption
        if source in self._spent:
            return
        self._spent[source] = request
        if not loaded:
            self._decline(source, "decode has all of its tokens")
            return
        prefix = tokens - loaded
        first, end = prefix // self._block_size, -(-tokens // self._block_size)
        load = Load(request, source.bootstrap, source.room, tuple(blocks[first:end]), prefix)
        self._next = attrs.evolve(self._next, loads=(*self._next.loads, load))
        self._loading[request] = source

    def finished(
        self,
        request: str,
        params: dict[str, Any] | None,
        blocks: Sequence[int],
        tokens: int,
        *,
        complete: bool,
    ) -> dict[str, Any] | None:
        """A request has ended; return what its answer tells.

        ``complete``: it was computed to its end, so that decode may have its ``blocks``.
        """
        source, failure = _Source.of(params), self._failures.pop(request, None)
        told = {"pdcore_failure": failure} if failure else None
        if request in self._loading:
            self._next = attrs.evolve(self._next, aborts=(*self._next.aborts, request))
        elif source is not None and params is not None and source not in self._spent:
            params["do_remote_prefill"] = False
            self._spent[source] = request
            self._decline(source, "the request ended before decode began with it")
        if not (params and params.get("do_remote_decode") and complete and blocks):
            return told
        send = Send(request, secrets.randbits(ROOM_BITS), tuple(blocks[: -(-tokens // self._block_size)]))
        self._next = attrs.evolve(self._next, sends=(*self._next.sends, send))
        self.holds.hold(request, send.blocks, self._workers, WATCH_SENDS)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "pdcore_bootstrap": self.bootstrap,
            "pdcore_room": send.room,
        }

    def work(self, *, idle: bool) -> Work:
        """Return what is to begin, once."""
        work, self._next = attrs.evolve(self._next, idle=idle), Work()
        return work

    def reported(self, received: Iterable[str], report: Report | None) -> None:
        """Take what the workers tell, before vLLM frees blocks of requests that ended."""
        for request in received:
            self._loading.pop(request, None)
        if report is None:
            return
        for request, (blocks, workers) in report.unsafe.items():
            self.holds.hold(request, blocks, workers, WATCH_UNSAFE)
        for request, workers in report.safe.items():
            self.holds.release(request, workers)
        self._failures.update(report.failures)

    def _decline(self, source: _Source, reason: str) -> None:
        decline = Decline(source.bootstrap, source.room, reason)
        self._next = attrs.evolve(self._next, declines=(*self._next.declines, decline))
