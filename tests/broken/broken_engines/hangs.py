"""Engines that do not come back."""

from __future__ import annotations

import threading

from broken_engines.honest import Honest, WithThread
from pdcore.contract.engine import Peer
from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.contract.regions import RegionInfo, WriteBatch
from pdcore.model import Deadline, Role

LET_GO = threading.Event()
"""Ends all that hangs, so that a test can end what it has started."""


class ConnectsForEver(Honest):
    """Waits for a peer that is dead."""

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        try:
            return super().do_connect(endpoint, regions, native, deadline)
        except Exception:
            LET_GO.wait()
            raise


class ConnectsUnderLock(Honest):
    """Holds the lock that writes need while it connects, until its deadline if the peer does not answer."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.lock = threading.Lock()
        self.connected = 0

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        with self.lock:
            self.connected += 1
            if self.connected == 3:  # to the peer that is stopped
                LET_GO.wait(deadline.remaining())
            return super().do_connect(endpoint, regions, native, deadline)

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        with self.lock:
            return super().do_write(peer, batch)


class WaitsForEver(WithThread):
    """Waits for the end, whatever the deadline."""

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        return Deaf(super().do_write(peer, batch))


class Deaf(Transfer):
    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def poll(self) -> TransferState:
        return self._transfer.poll()

    def wait(self, deadline: Deadline) -> TransferState:
        if deadline.remaining() < 1:
            LET_GO.wait()
        return self._transfer.wait(Deadline.after(60))

    @property
    def quiescence(self) -> Quiescence:
        return self._transfer.quiescence


class Endless(Transfer):
    quiescence = Quiescence.UNKNOWN

    def poll(self) -> TransferState:
        return TransferState.PENDING

    def wait(self, deadline: Deadline) -> TransferState:
        LET_GO.wait(deadline.remaining())
        return TransferState.PENDING


class NeverFails(Honest):
    """Never ends a write that cannot succeed."""

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        transfer = super().do_write(peer, batch)
        failed = transfer.poll() is TransferState.FAILED
        return Endless() if failed and not self._closed else transfer
