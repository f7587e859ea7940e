"""A queue of work on a device, some of it held back: a CUDA stream, or a thread for host memory."""

from __future__ import annotations

import ctypes
import queue
import threading
from collections.abc import Callable
from typing import Protocol

import torch

LONG = 2_000_000_000
"""Cycles of a kernel that runs for about a second."""


class Done(Protocol):
    """What ``ready=`` takes: whether the work queued before it has ended."""

    def query(self) -> bool: ...


class WorkQueue(Protocol):
    """Work that runs in its order, later."""

    def hold(self) -> None:
        """Queue a wait until ``let_go``."""

    def work_long(self) -> None:
        """Queue something that takes long."""

    def put(self, work: Callable[[], None]) -> None:
        """Queue work."""

    def mark(self) -> Done:
        """Return what tells once all that was queued has ended."""

    def let_go(self) -> None:
        """End the waits, and wait until the queue is empty."""


class CudaQueue:
    """A stream. A host function holds it back: kernels behind it are queued on the device, and don't run."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._open = threading.Event()
        self._wait = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: self._open.wait() and None)

    def hold(self) -> None:
        self._open.clear()
        driver = ctypes.CDLL("libcuda.so.1")
        code = driver.cuLaunchHostFunc(ctypes.c_void_p(self._stream.cuda_stream), self._wait, None)
        assert code == 0, f"cuLaunchHostFunc returned {code}"

    def work_long(self) -> None:
        with torch.cuda.stream(self._stream):
            torch.cuda._sleep(LONG)  # type: ignore[no-untyped-call]

    def put(self, work: Callable[[], None]) -> None:
        with torch.cuda.stream(self._stream):
            work()

    def mark(self) -> Done:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def let_go(self) -> None:
        self._open.set()
        self._stream.synchronize()


class _Mark:
    def __init__(self) -> None:
        self.ended = threading.Event()

    def query(self) -> bool:
        return self.ended.is_set()


class ThreadQueue:
    """A thread that does what a stream would."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._work: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="stream", daemon=True).start()

    def hold(self) -> None:
        self._open.clear()
        self._work.put(self._open.wait)

    def work_long(self) -> None:
        self._work.put(lambda: torch.linalg.inv(torch.rand(700, 700, dtype=torch.float64)))

    def put(self, work: Callable[[], None]) -> None:
        self._work.put(work)

    def mark(self) -> Done:
        mark = _Mark()
        self._work.put(mark.ended.set)
        return mark

    def let_go(self) -> None:
        self._open.set()
        last = _Mark()
        self._work.put(last.ended.set)
        last.ended.wait()

    def _run(self) -> None:
        while True:
            self._work.get()()


def queue_on(device: str) -> WorkQueue:
    """Return a queue of work on a device."""
    return CudaQueue() if device.startswith("cuda") else ThreadQueue()
