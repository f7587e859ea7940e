"""Where the chunks of one room wait, in order, until they may leave for its decode ranks."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from pdcore.errors import KVTransferError
from pdcore.prefill.delivery import TransferKVChunk
from pdcore.prefill.readiness import SourceReadiness
from pdcore.prefill.ready_waiter import Waiter

__all__ = ["ChunkGate"]


class Leave(Protocol):
    """Has a chunk sent. ``waited``: it had to be ready; ``from_send``: it leaves in the caller's ``send``."""

    def __call__(self, chunk: TransferKVChunk, *, waited: bool, from_send: bool) -> None: ...


class ChunkGate:
    """Shut until decode has named its pages. Then a chunk leaves when those before it have and its source
    may be read; ``fail`` is told what its ``ready`` raised.

    A chunk that waits has not been read, so that its room may end at any time. Another chunk leaves in the
    thread that found it ready. The lock guards all fields.
    """

    def __init__(self, waiter: Waiter, leave: Leave, fail: Callable[[KVTransferError], object]) -> None:
        self._waiter, self._leave, self._fail = waiter, leave, fail
        self._lock = threading.Lock()
        self._waiting: deque[tuple[TransferKVChunk, SourceReadiness | None]] = deque()
        self._first: TransferKVChunk | None = None  # it leaves, or waits for its ready
        self._open = False
        self._ended = False

    @property
    def unready(self) -> TransferKVChunk | None:
        """The chunk whose source is waited for, if any."""
        return self._first

    def put(self, chunk: TransferKVChunk, ready: SourceReadiness | None) -> None:
        """Let a chunk leave after those before it; the first thing when it may, in this thread."""
        with self._lock:
            self._waiting.append((chunk, ready))
        self._go_on(from_send=True)

    def open(self) -> None:
        """Let what waits leave: decode has named its pages."""
        with self._lock:
            self._open = True
        self._go_on(from_send=False)

    def end(self) -> None:
        """Forget what waits: the room has ended."""
        with self._lock:
            self._ended = True
            self._waiting.clear()

    def _go_on(self, *, from_send: bool) -> None:
        """Let chunks leave until one must wait; does nothing where another thread is at it."""
        while True:
            with self._lock:
                if not self._open or self._first is not None or not self._waiting:
                    return
                chunk, ready = self._waiting.popleft()
                self._first = chunk
            if ready is not None and not self._may_leave(chunk, ready):
                return
            self._send(chunk, waited=ready is not None, from_send=from_send)

    def _may_leave(self, chunk: TransferKVChunk, ready: SourceReadiness) -> bool:
        try:
            if ready.asks is not None and ready.asks():
                return True
        except Exception as error:  # it is the caller's
            self._fail(ready.failure(error))
            return False
        self._waiter.watch(ready, self._wanted, partial(self._on_ready, chunk, ready))
        return False

    def _on_ready(self, chunk: TransferKVChunk, ready: SourceReadiness, error: Exception | None) -> None:
        if not self._wanted():
            return
        if error is not None:
            self._fail(ready.failure(error))
            return
        self._send(chunk, waited=True, from_send=False)
        self._go_on(from_send=False)

    def _wanted(self) -> bool:
        return not self._ended

    def _send(self, chunk: TransferKVChunk, *, waited: bool, from_send: bool) -> None:
        try:
            self._leave(chunk, waited=waited, from_send=from_send)
        finally:
            with self._lock:
                self._first = None
