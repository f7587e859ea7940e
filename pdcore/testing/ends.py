"""The two ends of a conformance test: an engine of this process, one of another, and a link between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from pdcore.contract.engine import Peer, TransferEngine
from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Deadline, Role
from pdcore.testing.bounded import bounded
from pdcore.testing.far import commands as c
from pdcore.testing.far.process import FarProcess
from pdcore.testing.memory import (
    GUARD,
    ByteArray,
    GuardedMemory,
    MemoryWatch,
    SharedMemory,
    digest,
    overlay,
    pattern,
)
from pdcore.testing.pump import Pump
from pdcore.testing.target import Target

__all__ = ["FAR_SEED", "GRACE", "KIB", "MIB", "STILL", "Far", "Link", "Near", "require_honest"]

T = TypeVar("T")

KIB, MIB = 1 << 10, 1 << 20

FAR_SEED = 2_000

GRACE = 5.0
"""Seconds after its deadline at which a call counts as hung."""

STILL = 1.0
"""Seconds for which memory is watched that must not change any more."""


def require_honest(engine: TransferEngine, transfer: Transfer) -> Quiescence:
    """Require of a transfer that FAILED that it says why, and is as drained as declared; return how it is."""
    said = transfer.quiescence
    assert transfer.poll() is TransferState.FAILED, "a transfer that FAILED did not stay so"
    error = transfer.error
    assert isinstance(error, KVTransferError), f"the error is {error!r}, no KVTransferError"
    assert error.code in (FailureCode.PEER_LOST, FailureCode.ENGINE), f"its code is {error.code}"
    assert all((error.happened, error.there_is, error.to_do)), f"it does not say all: {error}"
    if engine.capabilities.drained_on_failure:
        assert said is Quiescence.DRAINED, f"declared drained_on_failure, and a failed write is {said.name}"
    return said


class Near:
    """An engine of this process, with its memory registered."""

    def __init__(self, engine: TransferEngine, memory: Sequence[GuardedMemory], patience: float) -> None:
        self.engine = engine
        self.patience = patience
        self.memory = memory
        self.pumps: list[Pump] = []
        self.export = bounded(lambda: engine.register([m.region for m in memory]), patience, "register")

    def require_still(self, when: str) -> None:
        """Mark the memory, and prove that no byte of it changes for a while."""
        _require_still([m.bytes for m in self.memory], when)

    def close(self) -> None:
        """Close the engine."""
        bounded(self.engine.close, self.patience, "close")

    def end(self) -> None:
        """Close the engine, and wait for the threads that write with it."""
        self.close()
        for pump in self.pumps:
            pump.stop(Deadline.after(self.patience))


class Far:
    """An engine of a far process, with its memory registered. Its memory can be seen from here."""

    def __init__(self, process: FarProcess, target: Target, lengths: Sequence[int]) -> None:
        self.process = process
        self.lengths = list(lengths)
        start = c.StartEngine(target.name, dict(target.options), Role.DECODE.value, self.lengths, FAR_SEED)
        self._accept(process.ask(start))
        self._seen: list[ByteArray] = []

    def _accept(self, started: c.RegisteredEngine) -> None:
        self.endpoint, self.export, self._fds = started.endpoint, started.export, started.memory

    @property
    def memory(self) -> Sequence[ByteArray]:
        """Its regions, as they are now, whether the process runs or not."""
        if not self._seen:
            for fd, length in zip(self._fds, self.lengths, strict=True):
                shared = SharedMemory.of(self.process.pid, fd, length + 2 * GUARD)
                self._seen.append(shared.bytes[GUARD : GUARD + length])
        return self._seen

    def register_again(self) -> None:
        """Deregister and register the same memory."""
        self._accept(self.process.ask(c.RegisterAgain()))

    def revoke(self, near: Near) -> Quiescence:
        """Revoke the near engine."""
        return Quiescence(self.process.ask(c.RevokeWriter(near.engine.endpoint(), near.patience)))

    def require_still(self, when: str) -> None:
        """Mark the memory, and prove that no byte of it changes for a while."""
        _require_still(self.memory, when)

    def guards(self) -> dict[int, list[int]]:
        """Return, by region, the offsets at which its guards were overwritten."""
        return self.process.ask(c.DamagedGuards())

    def close(self) -> None:
        """Close the engine; the memory stays."""
        self.process.ask(c.CloseEngine())


def _require_still(memory: Sequence[ByteArray], when: str) -> None:
    changed = MemoryWatch(memory).await_change(Deadline.after(STILL))
    assert not changed, f"bytes landed after {when}"


class Link:
    """A near engine connected to a far one, which has admitted it."""

    def __init__(self, near: Near, far: Far) -> None:
        self.near, self.far = near, far
        far.process.ask(c.AdmitWriter(near.engine.endpoint()))
        self.peer = self.connect()

    def deadline(self) -> Deadline:
        """Return the deadline of a call that starts now."""
        return Deadline.after(self.near.patience)

    def connect(self, export: bytes | None = None) -> Peer:
        """Return a new connection to the far engine, by its export or another."""
        engine, far = self.near.engine, self.far
        regions = far.export if export is None else export
        return self.bounded(lambda: engine.connect(far.endpoint, regions, self.deadline()), "connect")

    def submit(self, batch: WriteBatch, peer: Peer | None = None) -> Transfer:
        """Start a write."""
        return self.bounded(lambda: self.near.engine.write(peer or self.peer, batch), "write")

    def write(self, batch: WriteBatch, peer: Peer | None = None) -> Transfer:
        """Write, and wait for the end."""
        transfer = self.submit(batch, peer)
        state = self.bounded(lambda: transfer.wait(self.deadline()), "wait")
        assert state is not TransferState.PENDING, f"a write had not ended after {self.near.patience:g} s"
        return transfer

    def bounded(self, call: Callable[[], T], what: str) -> T:
        """Return what a call returns that has a deadline of this link."""
        return bounded(call, self.near.patience + GRACE, what)

    def deliver(self, batch: WriteBatch, peer: Peer | None = None) -> None:
        """Write, and require that it succeeds."""
        transfer = self.write(batch, peer)
        assert transfer.poll() is TransferState.DONE, f"the write failed: {transfer.error}"

    def fail(self, batch: WriteBatch) -> Quiescence:
        """Write what cannot succeed, and require that it fails honestly; return how drained it says it is."""
        transfer = self.write(batch)
        assert transfer.poll() is TransferState.FAILED, "a write that cannot succeed did not fail"
        return require_honest(self.near.engine, transfer)

    def pump(self) -> Pump:
        """Go on writing from a thread; returns when one write is done."""
        pump = Pump(self.near.engine, self.peer)
        self.near.pumps.append(pump)
        assert pump.wait_started(self.deadline()), f"no write was done: {pump.error}"
        return pump

    def require_arrived(self, *batches: WriteBatch) -> None:
        """Have the far process read its memory back: these bytes arrived, and nothing else changed."""
        got = self.far.process.ask(c.MemoryDigests())  # at once: a byte that comes late must show
        expected = [pattern(FAR_SEED + i, length) for i, length in enumerate(self.far.lengths)]
        for batch in batches:
            overlay(expected, [m.bytes for m in self.near.memory], batch)
        for i, want in enumerate(expected):
            assert got[i] == digest(want), self._difference(i, want)
        damaged = self.far.guards()
        assert not damaged, f"bytes outside a region were overwritten: {damaged} (region: offsets)"

    def _difference(self, region: int, want: ByteArray) -> str:
        got = np.frombuffer(self.far.process.ask(c.ReadRegion(region)), np.uint8)
        wrong = np.flatnonzero(got != want)
        if not len(wrong):
            return f"region {region} was wrong when it was first read, and is right now: bytes came late"
        first = int(wrong[0])
        return (
            f"region {region}: {len(wrong)} of {len(want)} bytes are wrong, the first at {first}: "
            f"{got[first : first + 8].tobytes().hex()}, not {want[first : first + 8].tobytes().hex()}"
        )
