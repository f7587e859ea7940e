"""What a conformance test plays with: near engines, far engines, and links between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from pdcore.engine import Peer, TransferEngine
from pdcore.model import Deadline, Role
from pdcore.outcome import Quiescence, Transfer, TransferState
from pdcore.regions import WriteBatch
from pdcore.testing import commands as c
from pdcore.testing.bounded import bounded
from pdcore.testing.far import FarProcess
from pdcore.testing.memory import NEAR_GUARD, GuardedMemory, digest, overlay, pattern
from pdcore.testing.pump import Pump
from pdcore.testing.target import Target

__all__ = ["GRACE", "KIB", "MIB", "Crowd", "Far", "Link", "Near", "Stage"]

T = TypeVar("T")

KIB, MIB = 1 << 10, 1 << 20

NEAR_SEED, FAR_SEED, REFILL_SEED = 1_000, 2_000, 3_000

GRACE = 5.0
"""Seconds after its deadline at which a call counts as hung."""

STILL = 0.4
"""Seconds for which memory is watched that must not change any more."""


class Crowd:
    """Far processes that outlive a test: a new engine is quicker to start than a new process."""

    def __init__(self) -> None:
        self._idle: list[FarProcess] = []

    def take(self) -> FarProcess:
        """Return a process that runs no engine."""
        return self._idle.pop() if self._idle else FarProcess()

    def give(self, process: FarProcess, *, clean: bool) -> None:
        """Take a process back; one that is not clean ends."""
        if clean and process.alive:
            self._idle.append(process)
        else:
            process.end()

    def end(self) -> None:
        """End and reap all of them."""
        while self._idle:
            self._idle.pop().end()


class Near:
    """An engine of this process, with its memory registered."""

    def __init__(self, engine: TransferEngine, memory: Sequence[GuardedMemory], patience: float) -> None:
        self.engine = engine
        self.patience = patience
        self.memory = memory
        self.export = bounded(lambda: engine.register([m.region for m in memory]), patience, "register")

    def close(self) -> None:
        """Close the engine."""
        bounded(self.engine.close, self.patience, "close")


class Far:
    """An engine of a far process, with its memory registered."""

    def __init__(self, process: FarProcess, target: Target, lengths: Sequence[int]) -> None:
        self.process = process
        self.lengths = list(lengths)
        start = c.Start(target.name, dict(target.options), Role.DECODE.value, self.lengths, FAR_SEED)
        self._accept(process.ask(start, c.Started))

    def _accept(self, started: c.Started) -> None:
        self.endpoint, self.export = started.endpoint, started.export

    def register_again(self) -> None:
        """Deregister and register the same memory."""
        self._accept(self.process.ask(c.Deregister(), c.Started))

    def revoke(self, near: Near) -> Quiescence:
        """Revoke the near engine."""
        return Quiescence(self.process.ask(c.Revoke(near.engine.endpoint(), near.patience), str))

    def require_still(self, when: str) -> None:
        """Overwrite the memory, and prove that no byte of it changes for a while.

        Overwritten, because the same bytes landing twice cannot be seen.
        """
        self.process.tell(c.Fill(REFILL_SEED))
        assert not self.process.ask(c.Watch(STILL), bool), f"bytes landed after {when}"

    def close(self) -> None:
        """Close the engine; the memory stays."""
        self.process.tell(c.Close())


class Link:
    """A near engine connected to a far one, which has admitted it."""

    def __init__(self, near: Near, far: Far) -> None:
        self.near, self.far = near, far
        far.process.tell(c.Admit(near.engine.endpoint()))
        self.peer = self.connect()

    def deadline(self) -> Deadline:
        """Return the deadline of a call that starts now."""
        return Deadline.after(self.near.patience)

    def connect(self) -> Peer:
        """Return a new connection to the far engine."""
        engine, far = self.near.engine, self.far
        return self._bounded(lambda: engine.connect(far.endpoint, far.export, self.deadline()), "connect")

    def submit(self, batch: WriteBatch) -> Transfer:
        """Start a write."""
        return self._bounded(lambda: self.near.engine.write(self.peer, batch), "write")

    def write(self, batch: WriteBatch) -> Transfer:
        """Write, and wait for the end."""
        transfer = self.submit(batch)
        state = self._bounded(lambda: transfer.wait(self.deadline()), "wait")
        assert state is not TransferState.PENDING, f"a write had not ended after {self.near.patience:g} s"
        return transfer

    def _bounded(self, call: Callable[[], T], what: str) -> T:
        return bounded(call, self.near.patience + GRACE, what)

    def deliver(self, batch: WriteBatch) -> None:
        """Write, and require that it succeeds."""
        transfer = self.write(batch)
        assert transfer.poll() is TransferState.DONE, str(transfer.error)

    def pump(self) -> Pump:
        """Go on writing from a thread; returns when one write is done."""
        pump = Pump(self.near.engine, self.peer)
        assert pump.wait_started(self.deadline()), str(pump.error)
        return pump

    def require_arrived(self, *batches: WriteBatch) -> None:
        """Have the far process read its memory back: these bytes arrived, and nothing else changed."""
        got = self.far.process.ask(c.Digests(), list[str])  # at once: a byte that comes late must show
        expected = [pattern(FAR_SEED + i, length) for i, length in enumerate(self.far.lengths)]
        for batch in batches:
            overlay(expected, [m.bytes for m in self.near.memory], batch)
        for i, want in enumerate(expected):
            assert got[i] == digest(want), self._difference(i, want)
        damaged = self.far.process.ask(c.Guards(), dict[int, list[int]])
        assert not damaged, f"bytes outside a region were overwritten: {damaged} (region: offsets)"

    def _difference(self, region: int, want: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> str:
        got = np.frombuffer(self.far.process.ask(c.Read(region), bytes), np.uint8)
        wrong = np.flatnonzero(got != want)
        if not len(wrong):
            return f"region {region} was wrong when it was first read, and is right now: bytes came late"
        first = int(wrong[0])
        return (
            f"region {region}: {len(wrong)} of {len(want)} bytes are wrong, the first at {first}: "
            f"{got[first : first + 8].tobytes().hex()}, not {want[first : first + 8].tobytes().hex()}"
        )


class Stage:
    """Makes near and far engines for one test, and ends them after it."""

    def __init__(self, target: Target, crowd: Crowd) -> None:
        self.target = target
        self._crowd = crowd
        self.nears: list[Near] = []
        self._fars: list[Far] = []
        self._seeds = itertools.count(NEAR_SEED, 100)

    def deadline(self) -> Deadline:
        """Return the deadline of a call that starts now."""
        return Deadline.after(self.target.patience)

    def near(self, lengths: Sequence[int] = (MIB,)) -> Near:
        """Return a new engine of this process with regions of these lengths."""
        engine = bounded(
            lambda: self.target.start_engine(Role.PREFILL), self.target.patience + GRACE, "start of an engine"
        )
        memory = [GuardedMemory(f"near.{i}", length, NEAR_GUARD) for i, length in enumerate(lengths)]
        seed = next(self._seeds)
        for i, m in enumerate(memory):
            m.fill(seed + i)
        near = Near(engine, memory, self.target.patience)
        self.nears.append(near)
        return near

    def far(self, lengths: Sequence[int] = (MIB,)) -> Far:
        """Return a new engine of another process with regions of these lengths."""
        far = Far(self._crowd.take(), self.target, lengths)
        self._fars.append(far)
        return far

    def link(self, near: Sequence[int] = (MIB,), far: Sequence[int] = (MIB,)) -> Link:
        """Return a new near engine connected to a new far one."""
        return Link(self.near(near), self.far(far))

    def end(self) -> None:
        """Close all engines, and give the far processes back."""
        try:
            for near in self.nears:
                near.close()
        finally:
            for far in self._fars:
                self._retire(far)

    def _retire(self, far: Far) -> None:
        clean = False
        try:
            if far.process.alive:
                far.close()
                clean = True
        finally:
            self._crowd.give(far.process, clean=clean)
