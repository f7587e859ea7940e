"""Engines of the MORI adapter in one process, with memory that can be compared."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import numpy as np
import numpy.typing as npt
from pd_mori.engine import MoriEngine, MoriPeer

from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.errors import FailureCode
from pdcore.model import Certainty, Deadline, EffectiveTransport

SIZE = 65536
"""Bytes of every region here."""
NAMES = ("kv.0", "kv.1", "aux")
TRANSPORT = EffectiveTransport("rdma", Certainty.VERIFIED, "for a test")
Memory = dict[str, npt.NDArray[np.uint8]]


def soon() -> Deadline:
    return Deadline.after(30)


@attrs.define
class End:
    """One engine with its memory registered."""

    engine: MoriEngine
    memory: Memory
    export: bytes

    def connect(self, other: End) -> MoriPeer:
        peer = self.engine.connect(other.engine.endpoint(), other.export, soon())
        assert isinstance(peer, MoriPeer)
        return peer

    def deliver(self, peer: MoriPeer, batch: WriteBatch) -> None:
        transfer = self.engine.write(peer, batch)
        assert transfer.wait(soon()) is TransferState.DONE, transfer.error
        assert transfer.quiescence is Quiescence.DRAINED


Start = Callable[[], End]
SOME = WriteBatch.of(0, 0, [0], [512], [1000])
SEVERAL = WriteBatch(
    np.array([0, 1, 2]),
    np.array([1, 0, 2]),
    np.array([0, 3, 4, 6]),
    np.array([0, 4096, 64, 100, 9000, 0], np.uint64),
    np.array([4096, 0, 30000, 200, 0, 9000], np.uint64),
    np.array([1024, 2048, 7, 5000, 16, 32], np.uint64),
)
"""Six entries over three region pairs."""


def require_arrived(here: Memory, there: Memory, batch: WriteBatch) -> None:
    """Nothing but the batch's bytes is in the memory over there, which was zero."""
    expected = {name: np.zeros(SIZE, np.uint8) for name in NAMES}
    for pair, (local, remote) in enumerate(zip(batch.local_regions, batch.remote_regions, strict=True)):
        for entry in range(batch.starts[pair], batch.starts[pair + 1]):
            arrays = (batch.local_offsets, batch.remote_offsets, batch.lengths)
            source, target, length = (int(array[entry]) for array in arrays)
            expected[NAMES[remote]][target : target + length] = here[NAMES[local]][source : source + length]
    for name, array in expected.items():
        assert np.array_equal(there[name], array), name


def forged(export: bytes, **changes: Callable[[Any], Any]) -> bytes:
    """Return an export with fields of its native part changed."""
    body = msgspec.msgpack.decode(export[4:])
    native = msgspec.msgpack.decode(body["native"])
    for field, change in changes.items():
        native[field] = change(native[field])
    body["native"] = msgspec.msgpack.encode(native)
    packed = msgspec.msgpack.encode(body)
    return zlib.crc32(packed).to_bytes(4, "big") + packed


def given(value: object, _: object) -> object:
    return value


def quiescence(transfer: Transfer) -> Quiescence:
    """What a transfer says now."""
    return transfer.quiescence


def failed(transfer: Transfer) -> tuple[FailureCode, str]:
    assert transfer.wait(soon()) is TransferState.FAILED
    assert transfer.error is not None
    return transfer.error.code, transfer.error.there_is
