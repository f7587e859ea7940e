"""What a conformance test plays with: near engines, far engines, and links between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pdcore.model import Deadline, Role
from pdcore.testing.bounded import bounded
from pdcore.testing.ends import GRACE, MIB, Far, Link, Near
from pdcore.testing.far.process import FarProcess
from pdcore.testing.memory import NEAR_GUARD, GuardedMemory
from pdcore.testing.target import Target

__all__ = ["EnginesUnderTest", "FarProcessPool"]

NEAR_SEED = 1_000


class FarProcessPool:
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
            process.kill()

    def end(self) -> None:
        """End and reap all of them."""
        while self._idle:
            self._idle.pop().kill()


class EnginesUnderTest:
    """Makes near and far engines for one test, and ends them after it."""

    def __init__(self, target: Target, far_processes: FarProcessPool) -> None:
        self.target = target
        self._far_processes = far_processes
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
        far = Far(self._far_processes.take(), self.target, lengths)
        self._fars.append(far)
        return far

    def link(self, near: Sequence[int] = (MIB,), far: Sequence[int] = (MIB,)) -> Link:
        """Return a new near engine connected to a new far one."""
        return Link(self.near(near), self.far(far))

    def end(self) -> None:
        """Close all engines, and give the far processes back."""
        try:
            for near in self.nears:
                near.end()
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
            self._far_processes.give(far.process, clean=clean)
