"""The engine contract: regions and offsets in, transfers out. What every backend's adapter implements.

An adapter subclasses :class:`TransferEngine` and fills in the ``do_*`` methods. The public methods
around them keep the promises that are the same for every engine: the life cycle, the wrapping of
what peers exchange, and the proof that a batch stays inside both regions before the adapter sees it.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pdcore.contract.capabilities import EngineCapabilities
from pdcore.contract.export import open_export, seal_export
from pdcore.contract.outcome import Finished, Quiescence, Transfer, TransferState
from pdcore.contract.regions import OffsetArray, Region, RegionInfo, WriteBatch
from pdcore.errors import EngineClosedError, EngineError, ForkedError, RegistrationError
from pdcore.host.fork import Birthplace, kept
from pdcore.host.shortage import require_descriptors
from pdcore.layout.extent import are_items
from pdcore.model import Deadline, EffectiveTransport

__all__ = ["EngineCapabilities", "Peer", "RawWrite", "TransferEngine"]


class Peer:
    """A connected engine on the far side; adapters subclass it to keep their own handles.

    ``region_lengths`` (bytes, uint64) is what batches are proven against.
    """

    def __init__(self, endpoint: bytes, regions: tuple[RegionInfo, ...]) -> None:
        self.endpoint = endpoint
        self.regions = regions
        self.region_lengths: OffsetArray = np.array([r.length for r in regions], np.uint64)


class TransferEngine(ABC):
    """One engine of one process. Thread-safe: lanes call ``write`` concurrently."""

    capabilities: EngineCapabilities
    effective_transport: EffectiveTransport

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._birthplace = Birthplace(self)
        self._life = threading.Lock()  # guards _closed
        self._closed = False
        self.regions: tuple[Region, ...] = ()
        self.region_lengths: OffsetArray = np.zeros(0, np.uint64)

    @classmethod
    def refuse_inherited(cls, library: str) -> None:
        """Refuse to start where a fork left an engine of this class: for adapters whose library has threads
        and sockets of its own, which the child lacks, and state that it has.

        Raises:
            ForkedError: the parent had one open when it forked; names ``library``.
        """
        parents = {engine._pid for engine in kept(cls) if engine._birthplace.left and not engine._closed}
        if parents:
            raise ForkedError(
                f"{library} cannot start an engine in a forked child",
                f"process {min(parents)} had one open when it forked this one, {os.getpid()}",
                "start workers with the 'spawn' method, or before the first engine",
            )

    # --- what adapters implement -----------------------------------------------------------

    @abstractmethod
    def endpoint(self) -> bytes:
        """Return how peers reach this engine; opaque to the core, unique per incarnation."""

    @abstractmethod
    def do_register(self, regions: Sequence[Region]) -> bytes:
        """Register all regions and return the engine's own export for peers.

        Raises:
            RegistrationError: naming the region; nothing stays registered then.
        """

    @abstractmethod
    def do_deregister(self) -> None:
        """Take all registrations back."""

    @abstractmethod
    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        """Connect to the engine at ``endpoint``, whose ``do_register`` returned ``native``.

        Raises:
            EngineError: the peer cannot be reached or is not what the endpoint says.
        """

    @abstractmethod
    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        """Start (or, if synchronous, make) the copies of a non-empty, proven batch; never raises
        for a failed transfer, whose error is a :class:`KVTransferError` of code ENGINE or PEER_LOST."""

    @abstractmethod
    def do_disconnect(self, peer: Peer) -> None:
        """Forget a peer; idempotent. Writes to it may be in flight: their transfers must go on telling."""

    @abstractmethod
    def do_close(self) -> None:
        """Stop for good; return only when no byte can leave or arrive any more."""

    def admit(self, endpoint: bytes) -> None:
        """Expect writes from the engine at ``endpoint``; the receiving side calls it at pairing."""
        return

    def expect(self, rooms: int) -> None:
        """So many rooms are waited for; an engine that must run for them to arrive runs now."""
        return

    def revoke(self, endpoint: bytes, deadline: Deadline) -> Quiescence:
        """Stop expecting writes from ``endpoint``. DRAINED: none of its bytes can land any more."""
        return Quiescence.UNKNOWN

    def settle(self, endpoint: bytes, deadline: Deadline) -> Quiescence:
        """Wait until nothing can land here any more of the engine at ``endpoint``, whose process has ended.

        Nothing of that process runs, and on each TCP connection its kernel has sent all that it was given
        (:class:`pdcore.host.sockets.Unsent`). What has arrived and is not taken in yet is this side's:
        sockets that are not read (:class:`pdcore.host.sockets.Unread`), and what the engine buffers.
        DRAINED: it is taken in. IN_FLIGHT: not by the deadline, ask again. UNKNOWN: this engine cannot tell.
        """
        return Quiescence.UNKNOWN

    def prepare_raw(self, peer: Peer, batch: WriteBatch) -> RawWrite:
        """Return the barest call that copies ``batch`` and waits, all prepared: ``bench``'s yardstick."""
        return _PlainWrite(self, peer, batch)

    # --- what the core calls ---------------------------------------------------------------

    def register(self, regions: Sequence[Region]) -> bytes:
        """Register all memory at once and return the checksummed export for peers.

        Raises:
            RegistrationError: a region is empty, named twice, on an unsupported device, or refused.
            EngineClosedError: the engine is closed or was inherited by a forked child.
        """
        self._check_usable()
        names = [r.name for r in regions]
        for region in regions:
            wrong = (
                "is empty"
                if region.length < 1
                else "is registered twice"
                if names.count(region.name) > 1
                else f"lies on {region.device}, which this engine cannot reach"
                if region.device.kind not in self.capabilities.memory_kinds
                else f"is no whole number of items of {region.item_len} bytes"
                if not are_items(region.length, region.item_len, region.item_stride)
                else ""
            )
            if wrong:
                kinds = ", ".join(sorted(k.value for k in self.capabilities.memory_kinds))
                raise RegistrationError(
                    f"region {region.name!r} {wrong}",
                    f"{region.length} bytes on {region.device}",
                    f"register each region once, non-empty, whole, on one of: {kinds}",
                )
        if self.regions:
            raise RegistrationError(
                "this engine already has its memory registered",
                f"{len(self.regions)} regions",
                "register all regions in one call, or deregister first",
            )
        native = self.do_register(regions)
        self.regions = tuple(regions)
        self.region_lengths = np.array([r.length for r in regions], np.uint64)
        return seal_export(regions, native)

    def deregister(self) -> None:
        """Take all registrations back; idempotent. In a forked child it does nothing."""
        if self.regions and os.getpid() == self._pid:
            self.do_deregister()
            self.regions = ()
            self.region_lengths = np.zeros(0, np.uint64)

    def connect(self, endpoint: bytes, regions: bytes, deadline: Deadline) -> Peer:
        """Connect to a peer, given its ``endpoint()`` and what its ``register()`` returned.

        Raises:
            EngineError: the export is corrupt or of another version, the peer cannot be reached, or there are
                too few file descriptors.
        """
        self._check_usable()
        require_descriptors(self.capabilities.descriptors_per_peer, "to connect to a peer")
        export = open_export(regions)
        return self.do_connect(endpoint, export.regions, export.native, deadline)

    def write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        """Copy a batch to a peer, after proving that it stays inside both sides' regions.

        Raises:
            PlanError: the batch leaves a region; no byte moved.
            EngineClosedError: the engine is closed or was inherited by a forked child.
        """
        self._check_usable()
        batch.prove_inside(self.region_lengths, peer.region_lengths)
        return self.do_write(peer, batch) if len(batch) else Finished()

    def disconnect(self, peer: Peer) -> None:
        """Forget a peer; idempotent."""
        self.do_disconnect(peer)

    def close(self) -> None:
        """Stop for good; idempotent. Returns only when no byte can move any more.

        In a forked child it does nothing, and takes no lock: a thread of the parent may have it.
        """
        if os.getpid() != self._pid:
            return
        with self._life:
            if self._closed:
                return
            self._closed = True
        self.do_close()

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise EngineClosedError(
                "a transfer engine was used in a forked child",
                f"it was started in process {self._pid}",
                "start workers with the 'spawn' method and give each its own engine",
            )
        if self._closed:
            happened = "a transfer engine was used after close()"
            raise EngineClosedError(happened, "it is closed", "start a new engine")


class RawWrite(Protocol):
    """A prepared raw write: each call moves the same bytes and returns when they landed."""

    def __call__(self) -> None:
        """Move the bytes."""


class _PlainWrite:
    def __init__(self, engine: TransferEngine, peer: Peer, batch: WriteBatch) -> None:
        self._engine, self._peer, self._batch = engine, peer, batch

    def __call__(self) -> None:
        transfer = self._engine.do_write(self._peer, self._batch)
        if transfer.wait(Deadline.after(600)) is not TransferState.DONE:
            raise transfer.error or EngineError(
                "a raw write did not end", "600 s passed", "look at the engine's log"
            )
