"""A transfer engine whose writes go wrong as a schedule says; everything else is the real engine's."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from pdcore.contract.engine import Peer, TransferEngine
from pdcore.contract.outcome import Finished, Quiescence, Transfer, TransferState
from pdcore.contract.regions import Region, RegionInfo, WriteBatch
from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Deadline
from pdcore.testing.faults.schedule import Decision, Fault, Schedule

__all__ = ["FaultyEngine"]

LOOK = 0.02
"""Seconds between two looks of somebody who waits for a write that comes late."""


class FaultyEngine(TransferEngine):
    """Wraps a started engine."""

    def __init__(self, real: TransferEngine, schedule: Schedule, place: str) -> None:
        super().__init__()
        self.capabilities = real.capabilities
        self.effective_transport = real.effective_transport
        self._real = real
        self._schedule = schedule
        self._place = f"{place} write"

    def endpoint(self) -> bytes:
        return self._real.endpoint()

    def register(self, regions: Sequence[Region]) -> bytes:
        export = self._real.register(regions)
        self.regions, self.region_lengths = self._real.regions, self._real.region_lengths
        return export

    def deregister(self) -> None:
        self._real.deregister()

    def connect(self, endpoint: bytes, regions: bytes, deadline: Deadline) -> Peer:
        return self._real.connect(endpoint, regions, deadline)

    def write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        decision = self._schedule.write(self._place) if len(batch) else Decision(Fault.NONE)
        match decision.fault:
            case Fault.ERROR:
                return Finished(_error(decision))
            case Fault.PARTIAL:
                return self._partial(peer, batch, decision)
            case Fault.HANG:
                return _Later(self._real, peer, batch, self._schedule, decision, None)
            case Fault.LATE:
                return _Later(self._real, peer, batch, self._schedule, decision, _error(decision))
            case Fault.RAISE:
                raise RuntimeError("the schedule has the engine raise")
            case _:
                return self._real.write(peer, batch)

    def disconnect(self, peer: Peer) -> None:
        self._real.disconnect(peer)

    def close(self) -> None:
        self._real.close()

    def admit(self, endpoint: bytes) -> None:
        self._real.admit(endpoint)

    def expect(self, rooms: int) -> None:
        self._real.expect(rooms)

    def revoke(self, endpoint: bytes, deadline: Deadline) -> Quiescence:
        return self._real.revoke(endpoint, deadline)

    # The public methods above go to the real engine's own, so that nothing reaches these.

    def do_register(self, regions: Sequence[Region]) -> bytes:
        return self._real.do_register(regions)

    def do_deregister(self) -> None:
        self._real.do_deregister()

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        return self._real.do_connect(endpoint, regions, native, deadline)

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        return self._real.do_write(peer, batch)

    def do_disconnect(self, peer: Peer) -> None:
        self._real.do_disconnect(peer)

    def do_close(self) -> None:
        self._real.do_close()

    def _partial(self, peer: Peer, batch: WriteBatch, decision: Decision) -> Transfer:
        half = batch.of_pairs(np.arange(len(batch.local_regions)) < len(batch.local_regions) // 2)
        transfer = self._real.write(peer, half)
        transfer.wait(Deadline.after(30))
        return Finished(_error(decision), transfer.quiescence)


class _Later(Transfer):
    """A write that is made when its time has come, by whoever looks at it then.

    With ``failure`` it says from the start that it FAILED; else it is PENDING. The lock guards ``_made``.
    """

    def __init__(
        self,
        engine: TransferEngine,
        peer: Peer,
        batch: WriteBatch,
        schedule: Schedule,
        decision: Decision,
        failure: KVTransferError | None,
    ) -> None:
        self.error = failure
        self._engine, self._peer, self._batch, self._schedule = engine, peer, batch, schedule
        self._due = Deadline.after(decision.seconds)
        self._lock = threading.Lock()
        self._made: Transfer | None = None

    def poll(self) -> TransferState:
        made = self._make()
        if self.error is not None:
            return TransferState.FAILED
        if made is None:
            return TransferState.PENDING
        state = made.poll()
        self.error = made.error
        return state

    def wait(self, deadline: Deadline) -> TransferState:
        look = threading.Event()  # never set: the time that this takes is the fault itself
        while (state := self.poll()) is TransferState.PENDING and not deadline.expired:
            look.wait(min(LOOK, deadline.remaining()))
        return state

    @property
    def quiescence(self) -> Quiescence:
        made = self._make()
        return Quiescence.IN_FLIGHT if made is None else made.quiescence

    def _make(self) -> Transfer | None:
        if not (self._due.expired or self._schedule.healed):
            return None
        with self._lock:
            if self._made is None:
                # A closed engine refuses, and so proves that nothing lands any more.
                try:
                    self._made = self._engine.write(self._peer, self._batch)
                except Exception as error:
                    self._made = Finished(_refused(error))
            return self._made


def _error(decision: Decision) -> KVTransferError:
    return KVTransferError(
        FailureCode.ENGINE,
        "the schedule has a write fail",
        decision.fault.value,
        "replay it: python -m pdcore.testing.faults --seed N",
    )


def _refused(error: Exception) -> KVTransferError:
    return KVTransferError(FailureCode.ENGINE, "a late write was refused", repr(error), "nothing is to do")
