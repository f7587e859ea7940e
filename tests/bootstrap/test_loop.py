"""The loop in a thread: what is submitted ends, whenever that happens."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError, Future

import pytest

from pdcore.bootstrap.http.loop import LoopThread
from pdcore.model import Deadline


async def forever() -> None:
    await asyncio.Event().wait()


def submit_many(loop: LoopThread, start: threading.Barrier, futures: list[Future[None]]) -> None:
    start.wait(30)
    futures.extend([loop.submit(forever()) for _ in range(50)])


@pytest.mark.parametrize("_nth", range(20))
def test_what_is_submitted_while_the_loop_closes_is_cancelled_and_not_lost(_nth: int) -> None:
    loop, start = LoopThread("test"), threading.Barrier(3)
    futures: list[Future[None]] = []
    threads = [threading.Thread(target=submit_many, args=(loop, start, futures)) for _ in "ab"]
    for thread in threads:
        thread.start()
    start.wait(30)
    loop.close(Deadline.after(30))
    for thread in threads:
        thread.join(30)
    assert len(futures) == 100
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(30)


def test_the_loop_is_pythons_own_whatever_the_process_has_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang and vLLM install uvloop, whose transports are none of asyncio's."""
    monkeypatch.setattr(asyncio, "new_event_loop", lambda: 1 // 0)
    loop = LoopThread("test")
    try:
        running = loop.call(_running(), Deadline.after(30))
    finally:
        loop.close(Deadline.after(30))
    assert isinstance(running, asyncio.SelectorEventLoop)


async def _running() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()
