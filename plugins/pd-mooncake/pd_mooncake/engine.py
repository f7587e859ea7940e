"""The adapter: regions and offsets to Mooncake's addresses, and its silent failures to typed ones."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import msgspec
import numpy as np

from pd_mooncake.config import Protocol
from pd_mooncake.library import Library, NativeSettings
from pd_mooncake.native import BLOCKS, Contact, acquire, release
from pdcore.contract.budget import EntryBudget
from pdcore.contract.engine import EngineCapabilities, Peer, RawWrite, TransferEngine
from pdcore.contract.outcome import Finished, Quiescence, Transfer
from pdcore.contract.overlap import joined
from pdcore.contract.regions import OffsetArray, Region, RegionInfo, WriteBatch
from pdcore.errors import EngineError, FailureCode, KVTransferError
from pdcore.host.sockets import Unread
from pdcore.model import Deadline, DeviceKind, EffectiveTransport, new_incarnation

__all__ = ["CAPABILITIES", "MooncakeEngine", "MooncakePeer"]

CAPABILITIES = EngineCapabilities(
    max_outstanding_entries=BLOCKS,
    entry_cost=45e-6,
    remote_bounds_checked=True,
    aux=True,
    descriptors=16,
    descriptors_per_peer=8,
)

WRITERS = 2**30
PROBE, COOLDOWN = 2.0, 1.1
"""Seconds within which a peer that lives answers on its control port, and after an error, in which the
engine refuses innocent transfers to the same peer (1.0 s)."""

LOOK_AGAIN = 0.01
"""Seconds between two looks at sockets that the engine reads."""


@attrs.frozen
class _Endpoint:
    segment: str
    incarnation: str


# Made at import: msgspec 0.22 crashes when two threads are the first to decode a type.
_read_endpoint = msgspec.msgpack.Decoder(_Endpoint).decode


class MooncakePeer(Peer):
    """A peer's engine: its segment name and the addresses of its regions."""

    def __init__(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], segment: str, bases: OffsetArray
    ) -> None:
        super().__init__(endpoint, regions)
        self.segment = segment
        self.bases = bases
        self.connected = True


class MooncakeEngine(TransferEngine):
    """Writes in the calling thread, which waits for the engine; several lanes may.

    A failed write to a peer that lives is not drained: its other blocks go on, and what a stopped peer
    has not read yet lands when it is continued. Such pages are in quarantine until the engine closes.
    """

    def __init__(self, library: Library, settings: NativeSettings, transport: EffectiveTransport) -> None:
        super().__init__()
        kinds = {DeviceKind.CPU} if Protocol(settings.protocol) is not Protocol.INTRA_NVLINK else set()
        kinds |= {DeviceKind.CUDA} if getattr(library.module, "SUPPORT_CUDA", False) else set()
        self.capabilities = attrs.evolve(
            CAPABILITIES, memory_kinds=frozenset(kinds), settles=settings.protocol == "tcp"
        )
        self.effective_transport = transport
        self._native = acquire(library, settings)
        self._bases: OffsetArray = np.zeros(0, np.uint64)
        self._registered: list[int] = []
        self._writers = EntryBudget(WRITERS)
        self._endpoint = msgspec.msgpack.encode(_Endpoint(self._native.name(), new_incarnation()))

    def endpoint(self) -> bytes:
        return self._endpoint

    def do_register(self, regions: Sequence[Region]) -> bytes:
        try:
            for region in joined(regions):
                self._native.register(region)
                self._registered.append(region.address)
        except BaseException:
            self.do_deregister()
            raise
        self._bases = np.array([r.address for r in regions], np.uint64)
        return msgspec.msgpack.encode(self._bases.tolist())

    def do_deregister(self) -> None:
        while self._registered:
            self._native.unregister(self._registered.pop())

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        try:
            there = _read_endpoint(endpoint)
        except msgspec.DecodeError as error:
            raise EngineError(
                "this is not the endpoint of a Mooncake engine",
                str(error),
                "select one backend on both sides",
            ) from error
        bases = np.array(msgspec.msgpack.decode(native, type=list[int]), np.uint64)
        contact = self._native.contact(there.segment, deadline)
        why = contact.value
        if contact is Contact.ANSWERS:
            self._native.meet(there.segment, there.incarnation)
            why = (
                "" if self._native.answers(there.segment, int(bases[0])) else self._unreadable(there.segment)
            )
        if why:
            raise EngineError(
                f"the Mooncake engine at {there.segment} cannot be reached", why,
                "look whether that worker runs, and whether a firewall is between",
            )  # fmt: skip
        self._native.joined(there.segment)
        return MooncakePeer(endpoint, regions, there.segment, bases)

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        assert isinstance(peer, MooncakePeer)
        blocks = batch.absolute(self._bases, peer.bases)
        for first in range(0, len(batch), BLOCKS):
            failure = self._write_blocks(peer, [part[first : first + BLOCKS] for part in blocks])
            if failure is not None:
                return failure
        return Finished()

    def do_disconnect(self, peer: Peer) -> None:
        assert isinstance(peer, MooncakePeer)
        if peer.connected:
            peer.connected = False
            self._native.parted(peer.segment, int(peer.bases[0]))

    def settle(self, endpoint: bytes, deadline: Deadline) -> Quiescence:
        """Over TCP the engine reads each socket straight into the pages and buffers nothing.

        Memory of a GPU is filled from a bounce buffer: there an empty socket proves nothing.
        """
        if not self.capabilities.settles or any(r.device.kind is not DeviceKind.CPU for r in self.regions):
            return Quiescence.UNKNOWN
        unread = Unread()
        while unread.left():
            if deadline.expired or self._native.closing.wait(LOOK_AGAIN):
                return Quiescence.IN_FLIGHT
        return Quiescence.DRAINED

    def prepare_raw(self, peer: Peer, batch: WriteBatch) -> RawWrite:
        assert isinstance(peer, MooncakePeer)
        engine, segment = self._native.current, peer.segment
        blocks = batch.absolute(self._bases, peer.bases)
        calls = [[part[n : n + BLOCKS] for part in blocks] for n in range(0, len(batch), BLOCKS)]

        def write() -> None:
            for source, target, lengths in calls:
                if engine.batch_transfer_sync_write(segment, source, target, lengths) != 0:
                    raise EngineError(
                        "a raw write failed", f"{len(lengths)} blocks to {segment}", "try again"
                    )

        return write

    def do_close(self) -> None:
        self._writers.wait(WRITERS, Deadline.after(self._native.settings.transfer_timeout + COOLDOWN + PROBE))
        self.do_deregister()
        release(self._native)

    def _unreadable(self, segment: str) -> str:
        ours = self._native.settings.host
        if ("[" in segment) != (":" in ours):
            return f"its address and ours ({ours}) are of two families, and Mooncake speaks one of them"
        return "its memory cannot be read"

    def _write_blocks(self, peer: MooncakePeer, blocks: Sequence[OffsetArray]) -> Finished | None:
        count, budget = len(blocks[0]), self._native.budget(peer.segment)
        limit = Deadline.after(self._native.settings.transfer_timeout)
        while not budget.take(count):
            if not budget.wait(count, limit):
                return _failure(FailureCode.ENGINE, peer, f"{BLOCKS} blocks of other writes did not end")
        self._writers.take(1)
        try:
            self._check_usable()  # from here on ``close`` waits for this call
            code = self._native.current.batch_transfer_sync_write(peer.segment, *blocks)
            # Another code says nothing of bytes that may still land.
            return None if code == 0 else self._judge(peer, count)
        finally:
            self._writers.give(1)
            budget.give(count)

    def _judge(self, peer: MooncakePeer, count: int) -> Finished:
        """Say what a refused call means: the peer is gone, the engine is wedged, or just this call failed."""
        sending = self._native.current
        contact = self._native.contact(peer.segment, Deadline.after(PROBE))
        if contact is not Contact.ANSWERS:
            # A closed port leaves no memory that a byte could land in.
            landed = Quiescence.DRAINED if contact is Contact.GONE else Quiescence.IN_FLIGHT
            return _failure(FailureCode.PEER_LOST, peer, contact.value, landed)
        self._native.closing.wait(COOLDOWN)
        if self._native.answers(peer.segment, int(peer.bases[0])):
            return _failure(FailureCode.ENGINE, peer, f"a call of {count} blocks failed, the peer answers")
        self._native.replace(sending)
        return _failure(FailureCode.ENGINE, peer, "its transfers to this peer are wedged; it was replaced")


def _failure(
    code: FailureCode, peer: MooncakePeer, there_is: str, quiescence: Quiescence = Quiescence.IN_FLIGHT
) -> Finished:
    happened = f"the Mooncake engine failed to write to {peer.segment}"
    to_do = "send the request again, to another worker if this one is gone"
    return Finished(KVTransferError(code, happened, there_is, to_do), quiescence)
