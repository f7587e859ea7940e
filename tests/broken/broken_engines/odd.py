"""Engines that raise what they should not, keep what they should not, or mix up what is not theirs."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from broken_engines.honest import Honest
from pdcore.contract.engine import Peer
from pdcore.contract.outcome import Finished, Quiescence, Transfer, TransferState
from pdcore.contract.regions import Region, RegionInfo, WriteBatch
from pdcore.errors import EngineError
from pdcore.model import Deadline, Role


class WriteRaises(Honest):
    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        transfer = super().do_write(peer, batch)
        if transfer.poll() is TransferState.FAILED:
            raise ValueError("status -5")
        return transfer


class WriteExits(Honest):
    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        raise SystemExit("no transport")


class Raising(Transfer):
    """Raises where it should tell that it failed, or tells once only."""

    def __init__(self, transfer: Transfer, most: int) -> None:
        self._transfer, self._left = transfer, most
        self.error = transfer.error

    def poll(self) -> TransferState:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("the handle was released")
        return self._transfer.poll()

    def wait(self, deadline: Deadline) -> TransferState:
        return self.poll()

    @property
    def quiescence(self) -> Quiescence:
        return self._transfer.quiescence


class WaitRaises(Honest):
    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        transfer = super().do_write(peer, batch)
        return Raising(transfer, 0) if transfer.poll() is TransferState.FAILED else transfer


class TellsOnce(Honest):
    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        return Raising(super().do_write(peer, batch), 1)


class ConnectRaises(Honest):
    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        try:
            return super().do_connect(endpoint, regions, native, deadline)
        except EngineError as error:
            raise ConnectionRefusedError(111, "Connection refused") from error


class CloseRaises(Honest):
    """Cannot close once a peer has died."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.lost = False

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        transfer = super().do_write(peer, batch)
        self.lost |= transfer.poll() is TransferState.FAILED
        return transfer

    def do_close(self) -> None:
        super().do_close()
        if self.lost:
            raise BrokenPipeError(32, "Broken pipe")


class TakesAnyMemory(Honest):
    def register(self, regions: Sequence[Region]) -> bytes:
        self.regions = ()
        return super().register([r for r in regions if r.length and r.device.kind in self.reachable()])

    def reachable(self) -> frozenset[object]:
        return frozenset(self.capabilities.memory_kinds)


class LeaksThread(Honest):
    """Has a thread for each peer that nobody can reach."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.gone = threading.Event()

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        try:
            return super().do_connect(endpoint, regions, native, deadline)
        except EngineError:
            threading.Thread(target=self.gone.wait, args=(30,), name="reconnect", daemon=True).start()
            raise


class DisconnectsAll(Honest):
    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.peers: list[Peer] = []

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        self.peers.append(super().do_connect(endpoint, regions, native, deadline))
        return self.peers[-1]

    def do_disconnect(self, peer: Peer) -> None:
        for each in self.peers:
            super().do_disconnect(each)


class MixesPeers(Honest):
    """Writes to the peer that it connected to last."""

    last: Peer

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        self.last = super().do_connect(endpoint, regions, native, deadline)
        return self.last

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        return super().do_write(self.last, batch)


class Careless(Honest):
    """Keeps the batch under way in the engine."""

    batch: WriteBatch

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        self.batch = batch
        threading.Event().wait(0.0005)  # prepares something
        return super().do_write(peer, self.batch)


class SameEndpoint(Honest):
    def endpoint(self) -> bytes:
        return super().endpoint()[:4]


class WritesWhenClosed(Honest):
    def write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        return self.do_write(peer, batch) if len(batch) else Finished()
