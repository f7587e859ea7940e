"""Engines that declare what they do not keep."""

from __future__ import annotations

import socket

import attrs

from broken_engines.honest import Honest, WithThread
from broken_engines.socket_engine import SocketEngine, SocketTransfer, memory_at, receive_into
from pdcore.contract.engine import Peer
from pdcore.contract.outcome import Finished, Quiescence, Transfer, TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Deadline, DeviceKind, Role


class Bounds(Honest):
    """Says that the far side checks; only the core does."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.capabilities = attrs.evolve(self.capabilities, remote_bounds_checked=True)


class BoundsByHalf(SocketEngine):
    """Checks where an entry begins."""

    def receive_entry(self, connection: socket.socket, address: int, length: int) -> bool:
        inside = any(r.address <= address < r.address + r.length for r in self.regions)
        receive_into(connection, memory_at(address, length) if inside else memoryview(bytearray(length)))
        return inside


class BoundsOnce(SocketEngine):
    """Checks against all that was ever registered."""

    def do_deregister(self) -> None:
        self.once = self.regions

    def receive_entry(self, connection: socket.socket, address: int, length: int) -> bool:
        regions = self.regions or self.once
        inside = any(r.address <= address and address + length <= r.address + r.length for r in regions)
        receive_into(connection, memory_at(address, length) if inside else memoryview(bytearray(length)))
        return inside


class Silent(SocketEngine):
    """Calls itself silent after close; what its sockets hold still lands."""

    capabilities = attrs.evolve(SocketEngine.capabilities, silent_after_close=True)


class Drained(SocketEngine):
    """Says that what failed is drained, and then that it does not know."""

    capabilities = attrs.evolve(SocketEngine.capabilities, drained_on_failure=True)

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        return Vague(super().do_write(peer, batch))


class Wrapped(Transfer):
    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer

    def poll(self) -> TransferState:
        self.error = self._transfer.error
        return self._transfer.poll()

    def wait(self, deadline: Deadline) -> TransferState:
        self._transfer.wait(deadline)
        return self.poll()

    @property
    def quiescence(self) -> Quiescence:
        return self._transfer.quiescence


class Vague(Wrapped):
    @property
    def quiescence(self) -> Quiescence:
        failed = self.poll() is TransferState.FAILED
        return Quiescence.UNKNOWN if failed else self._transfer.quiescence


class GivesUp(SocketEngine):
    """Gives up a write after a while, and calls it drained."""

    capabilities = attrs.evolve(SocketEngine.capabilities, drained_on_failure=True, asynchronous=False)

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        transfer = super().do_write(peer, batch)
        assert isinstance(transfer, SocketTransfer)
        if transfer.wait(Deadline.after(1.0)) is TransferState.PENDING:
            transfer.end("it took more than a second", Quiescence.DRAINED)
        return transfer


class AlwaysDrained(SocketEngine):
    """Says DRAINED, whatever it is asked of."""

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        return Calm(super().do_write(peer, batch))


class AlwaysDrainedThread(WithThread):
    """The same of an engine whose bytes cannot be late."""

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        return Calm(super().do_write(peer, batch))


class Calm(Wrapped):
    @property
    def quiescence(self) -> Quiescence:
        return Quiescence.DRAINED


class DoneWhenSent(SocketEngine):
    """Says DONE once the sockets have the bytes."""

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        super().do_write(peer, batch).wait(Deadline.after(0.2))
        return Finished()


class Asynchronous(Honest):
    """Copies within write."""

    says, does = True, False

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.capabilities = attrs.evolve(self.capabilities, asynchronous=self.says)

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        said, self.capabilities = self.capabilities, attrs.evolve(self.capabilities, asynchronous=self.does)
        try:
            return super().do_write(peer, batch)
        finally:
            self.capabilities = said


class Synchronous(Asynchronous, WithThread):
    """Returns before the bytes moved, and does not say so."""

    says, does = False, True


class Limited(Honest):
    """Takes fewer entries at once, and shorter ones, than it declares."""

    entries, nbytes = 5_000, 1 << 40

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        if len(batch) > self.entries or int(batch.lengths.max()) > self.nbytes:
            why = "the library's queue is full"
            return Finished(KVTransferError(FailureCode.ENGINE, "a write failed", why, "send less at once"))
        return super().do_write(peer, batch)


class LimitedEntry(Limited):
    entries, nbytes = 1 << 40, 32 << 20


class Settles(Honest):
    """Cannot tell what is on its way."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.capabilities = attrs.evolve(self.capabilities, settles=True)


class SettlesInWords(Honest):
    """Calls what it does not know settled."""

    def settle(self, endpoint: bytes, deadline: Deadline) -> Quiescence:
        return Quiescence.DRAINED


class Descriptors(Honest):
    """Opens more than it declares."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.opened = [socket.socket() for _ in range(4)]

    def do_close(self) -> None:
        super().do_close()
        for each in self.opened:
            each.close()


class Kinds(Honest):
    """Takes any address for a device's."""

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.capabilities = attrs.evolve(self.capabilities, memory_kinds=frozenset(DeviceKind))


class Aux(Honest):
    """Carries pages only."""

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        pages = batch.of_pairs(peer.region_lengths[batch.remote_regions] > 4096)
        return super().do_write(peer, pages) if len(pages) else Finished()


class Revocable(Honest):
    """Cannot tell of anybody that it is silent."""

    def revoke(self, endpoint: bytes, deadline: Deadline) -> Quiescence:
        super().revoke(endpoint, deadline)
        return Quiescence.UNKNOWN
