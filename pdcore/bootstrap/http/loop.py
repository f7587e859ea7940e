"""An asyncio loop in a thread of its own, with a name and an end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import TypeVar

from pdcore.errors import BootstrapError
from pdcore.host.fork import Birthplace
from pdcore.host.shortage import require_descriptors
from pdcore.model import Deadline

__all__ = ["LoopThread"]

T = TypeVar("T")

LOOP_DESCRIPTORS = 6
"""What a loop takes, with a socket that it listens or connects with."""


class LoopThread:
    """Runs coroutines on the thread ``pdcore-<name>``; starts at once.

    Raises:
        BootstrapError: there are too few file descriptors.
    """

    def __init__(self, name: str) -> None:
        require_descriptors(LOOP_DESCRIPTORS, f"for the loop of {name}", BootstrapError)
        self._birthplace = Birthplace(self)
        # Not the policy's: a host that installs uvloop gives transports of another kind.
        self._loop = asyncio.SelectorEventLoop()
        # Guards _closed: what is submitted after the loop was told to stop would never run nor end.
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"pdcore-{name}", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[object, object, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine; its future may be waited for from any thread, cancelled if all has ended."""
        if self._birthplace.left:
            work.close()
        self._birthplace.require(self._thread.name)
        with self._lock:
            if not self._closed:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        future.cancel()
        return future

    def call(self, work: Coroutine[object, object, T], deadline: Deadline) -> T:
        """Run a coroutine and return its result.

        Raises:
            TimeoutError: the deadline passed; the coroutine was cancelled.
        """
        future = self.submit(work)
        try:
            return future.result(deadline.remaining())
        except concurrent.futures.TimeoutError as error:
            future.cancel()
            raise TimeoutError(f"{self._thread.name} did not answer within the deadline") from error

    def close(self, deadline: Deadline) -> None:
        """Cancel what still runs and end the thread; idempotent. Nothing in a forked child."""
        if self._birthplace.left:
            return
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(deadline.remaining())

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(_cancel_all())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
