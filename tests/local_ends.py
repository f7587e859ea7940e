"""Two engines of the backend ``local`` in one process, one writing to the other."""

from __future__ import annotations

import numpy as np

from pdcore.contract.engine import Peer
from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.contract.regions import Region, WriteBatch
from pdcore.local.engine import LocalEngine, LocalPeer
from pdcore.local.options import LocalOptions
from pdcore.model import Deadline


class Ends:
    """Two engines of this process: the first writes, the second has admitted it."""

    def __init__(self, options: LocalOptions, size: int) -> None:
        self.writer, self.reader = LocalEngine(options), LocalEngine(LocalOptions())
        self.source = np.random.default_rng(1).integers(0, 256, size, np.uint8)
        self.target = np.zeros(size, np.uint8)
        self.writer.register([Region.of("source", self.source)])
        self.export = self.reader.register([Region.of("target", self.target)])
        self.reader.admit(self.writer.endpoint())
        self.peer = self.connect()

    def connect(self) -> LocalPeer:
        peer = self.writer.connect(self.reader.endpoint(), self.export, soon())
        assert isinstance(peer, LocalPeer)
        return peer

    def write(self, peer: Peer | None = None) -> Transfer:
        size = len(self.source)
        transfer = self.writer.write(peer or self.peer, WriteBatch.of(0, 0, [0], [0], [size]))
        assert transfer.wait(soon()) is not TransferState.PENDING
        return transfer

    def close(self) -> None:
        self.writer.close()
        self.reader.close()


def soon() -> Deadline:
    return Deadline.after(10)


def reason(transfer: Transfer) -> str:
    assert transfer.poll() is TransferState.FAILED
    assert transfer.quiescence is Quiescence.DRAINED
    return str(transfer.error)
