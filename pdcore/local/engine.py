"""The adapter of the embedded backend: one-sided copies between processes of one host."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import attrs
import msgspec
import numpy as np

from pdcore.contract.engine import EngineCapabilities, Peer, RawWrite, TransferEngine
from pdcore.contract.outcome import Finished, Quiescence, Transfer
from pdcore.contract.regions import OffsetArray, Region, RegionInfo, WriteBatch
from pdcore.errors import EngineError, FailureCode, KVTransferError, RegistrationError
from pdcore.local import kernel
from pdcore.local.address import LocalAddress
from pdcore.local.copiers import Copiers
from pdcore.local.gate import WriteGate, prove_silent
from pdcore.local.options import LocalOptions
from pdcore.local.page import Page
from pdcore.local.peer_gate import PeerGate, denied, lost
from pdcore.local.under_way import UnderWay
from pdcore.local.vectors import Vectors
from pdcore.model import Certainty, Deadline, EffectiveTransport

__all__ = ["CAPABILITIES", "TRANSPORT", "LocalEngine"]

TRANSPORT = "process_vm_writev"

CAPABILITIES = EngineCapabilities(
    entry_cost=0.4e-6,
    prompt=True,
    drained_on_failure=True,
    revocable=True,
    silent_after_close=True,
    aux=True,
    descriptors=2,
    descriptors_per_peer=1,
)
"""With the default options; copy threads make it asynchronous."""

SETTLE = 10.0
"""Seconds that ``deregister`` and ``close`` wait for copies under way, here and at the writers."""


@attrs.frozen
class _LocalExport:
    key: bytes
    addresses: tuple[int, ...]


# Made at import: msgspec 0.22 crashes when two threads are the first to decode a type.
_read_registration = msgspec.msgpack.Decoder(_LocalExport).decode


class LocalPeer(Peer):
    """An engine of another process of this host (or of this one)."""

    def __init__(self, endpoint: bytes, regions: tuple[RegionInfo, ...], address: LocalAddress) -> None:
        super().__init__(endpoint, regions)
        self.address = address
        self.bases: OffsetArray = np.zeros(0, np.uint64)
        self.gate = PeerGate(address, b"")
        self.row = -1


class LocalEngine(TransferEngine):
    """Copies with ``process_vm_writev``, in the caller's thread or in ``options.copy_threads`` others.

    Raises:
        EngineError: the system call is missing or forbidden here.
    """

    def __init__(self, options: LocalOptions) -> None:
        super().__init__()
        try:
            kernel.self_test()
        except OSError as error:
            raise EngineError(
                "the backend 'local' cannot write to a process's memory here",
                str(error),
                "look at `pdcore doctor local`",
            ) from error
        kernel.allow_peers()
        self.capabilities = attrs.evolve(CAPABILITIES, asynchronous=options.copy_threads > 0)
        self.effective_transport = EffectiveTransport(
            TRANSPORT, Certainty.VERIFIED, "wrote a byte to this process with it at start"
        )
        self._page = Page()
        self._gate = WriteGate(self._page.gate)
        self._under_way = UnderWay(self._page.under_way)
        self._copiers = Copiers(options.copy_threads)
        self._bases: OffsetArray = np.zeros(0, np.uint64)
        self._endpoint = LocalAddress.of(self._page).encode()

    def endpoint(self) -> bytes:
        return self._endpoint

    def do_register(self, regions: Sequence[Region]) -> bytes:
        for region in regions:
            _require_mapped(region)
        addresses = tuple(region.address for region in regions)
        self._bases = np.array(addresses, np.uint64)
        return msgspec.msgpack.encode(_LocalExport(self._gate.key, addresses))

    def do_deregister(self) -> None:
        self._settle("deregister")

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        address = LocalAddress.decode(endpoint)
        address.require_reachable()
        registration = _read_registration(native)
        if len(registration.addresses) != len(regions):
            raise EngineError(
                "a peer's region export contradicts itself",
                f"{len(registration.addresses)} addresses for {len(regions)} regions",
                "run the same pdcore on both sides",
            )
        peer = LocalPeer(endpoint, regions, address)
        peer.bases = np.array(registration.addresses, np.uint64)
        peer.gate = PeerGate(address, registration.key + self._page.nonce)
        peer.row = self._under_way.add(address.nonce)
        return peer

    def do_disconnect(self, peer: Peer) -> None:
        assert isinstance(peer, LocalPeer)
        self._under_way.remove(peer.row)

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        assert isinstance(peer, LocalPeer)
        if peer.gate.refused:
            # Look again before the page says "busy": else a sender that goes on trying after it was
            # revoked could keep the receiver from ever finding it silent.
            try:
                peer.gate.require()
            except KVTransferError as error:
                return Finished(error)
        if not self._under_way.enter(peer.row):
            return Finished(self._ended(peer))
        if self.capabilities.asynchronous:
            bases = self._bases
            return self._copiers.submit(lambda: self._copy(peer, batch, bases))
        return Finished(self._copy(peer, batch, self._bases))

    def prepare_raw(self, peer: Peer, batch: WriteBatch) -> RawWrite:
        assert isinstance(peer, LocalPeer)
        vectors, pid = Vectors(*batch.absolute(self._bases, peer.bases)), peer.address.pid
        return lambda: vectors.copy_all(pid)

    def admit(self, endpoint: bytes) -> None:
        writer = LocalAddress.decode(endpoint)
        writer.require_reachable()
        self._gate.admit(writer)

    def revoke(self, endpoint: bytes, deadline: Deadline) -> Quiescence:
        writer = LocalAddress.decode(endpoint)
        self._gate.expel(writer)
        return prove_silent(writer, self._page.nonce, deadline)

    def do_close(self) -> None:
        self._under_way.close()
        try:
            self._settle("close")
        finally:
            self._copiers.dismiss(Deadline.after(SETTLE))
        self._page.retire()

    def _copy(self, peer: LocalPeer, batch: WriteBatch, bases: OffsetArray) -> KVTransferError | None:
        """Make the copies of a batch that is noted as under way, and note its end."""
        try:
            vectors = Vectors(*batch.absolute(bases, peer.bases))
            try:
                vectors.copy(peer.address.pid, lambda: self._permit(peer))
            except OSError as error:
                return self._explain(error, peer, vectors, bases)
        except KVTransferError as error:
            return error
        finally:
            self._under_way.leave(peer.row)
        return None

    def _permit(self, peer: LocalPeer) -> None:
        if not self._under_way.open:
            raise self._ended(peer)
        peer.gate.require()

    def _ended(self, peer: LocalPeer) -> KVTransferError:
        what = "the peer was disconnected" if self._under_way.open else "this engine was closed"
        return KVTransferError(
            FailureCode.ENGINE,
            f"a write to {peer.address.process} ended before all of its bytes were copied",
            what,
            "send before disconnecting and closing",
        )

    def _explain(
        self, error: OSError, peer: LocalPeer, vectors: Vectors, bases: OffsetArray
    ) -> KVTransferError:
        if error.errno == errno.ESRCH:
            return lost(peer.address)
        if error.errno == errno.EPERM:
            return denied(peer.address, error)
        source, target, length = vectors.stopped_at()
        there = _region_at(target, peer.bases, peer.regions)
        here = _region_at(source, bases, tuple(r.info for r in self.regions))
        return KVTransferError(
            FailureCode.ENGINE,
            f"the kernel could not copy to region {there!r} of {peer.address.process}",
            f"{error.strerror}: {length} bytes at {source:#x} in region {here!r} to {target:#x}",
            "keep registered memory mapped on both sides until it is deregistered",
        )

    def _settle(self, action: str) -> None:
        """Wait until no byte leaves or arrives any more."""
        deadline = Deadline.after(SETTLE)
        writers = self._gate.expel_all()
        busy = [] if self._under_way.wait_quiet(deadline) else ["this engine's own copies"]
        busy += [
            f"the writes of {writer.process}"
            for writer in writers
            if prove_silent(writer, self._page.nonce, deadline) is not Quiescence.DRAINED
        ]
        if busy:
            raise EngineError(
                f"{action} cannot prove that no byte moves any more",
                f"still under way after {SETTLE:.0f} s: {', '.join(busy)}",
                "keep the memory mapped until those processes have ended or go on (is one stopped?)",
            )


def _require_mapped(region: Region) -> None:
    try:
        kernel.read_memory(os.getpid(), region.address, 1)
        kernel.read_memory(os.getpid(), region.address + region.length - 1, 1)
    except OSError as error:
        raise RegistrationError(
            f"region {region.name!r} is not mapped in this process",
            f"{region.length} bytes at {region.address:#x}: {error.strerror} at its first or last byte",
            "register memory that is allocated, with its true length",
        ) from error


def _region_at(address: int, bases: OffsetArray, regions: tuple[RegionInfo, ...]) -> str:
    inside = (
        r.name for r, base in zip(regions, bases.tolist(), strict=True) if base <= address < base + r.length
    )
    return next(inside, "none")
