"""The adapter: regions and offsets to MORI's memory descriptors, and its statuses to transfers."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator, Sequence

import attrs
import msgspec

from pd_mori.address import ask
from pd_mori.library import Library, MemoryDesc, NativeEngine
from pd_mori.transfer import Flights, MoriTransfer, Remote, Request
from pdcore.contract.engine import EngineCapabilities, Peer, RawWrite, TransferEngine
from pdcore.contract.outcome import Finished, Transfer, TransferState
from pdcore.contract.regions import Region, RegionInfo, WriteBatch
from pdcore.errors import EngineError, FailureCode, RegistrationError
from pdcore.model import Deadline, Device, DeviceKind, EffectiveTransport

__all__ = ["CAPABILITIES", "MoriEngine", "MoriPeer"]

CAPABILITIES = EngineCapabilities(
    max_outstanding_entries=8192,
    max_entry_bytes=2**32 - 1,
    entry_cost=4e-6,
    asynchronous=True,
    memory_kinds=frozenset({DeviceKind.CPU, DeviceKind.CUDA}),
    silent_after_close=True,
    descriptors=32,
    descriptors_per_peer=16,
)
"""A send queue holds 8192 work requests, and MORI blocks who posts to a full one; sizes are 32 bits wide."""

SETTLE = 15.0
"""Seconds in which the NIC's retries end every transfer to a peer that is gone, so that all can be proven."""
PROBE = 0.25
"""Seconds within which a machine that lives answers or refuses at a port."""
_unproven: list[MoriEngine] = []
"""Those with statuses that never ended: freed, MORI would write to what comes to lie in their place."""


@attrs.frozen
class _Export:
    engine: bytes
    memories: list[bytes]


# Made at import: msgspec 0.22 crashes when two threads are the first to decode a type.
_read_export = msgspec.msgpack.Decoder(_Export).decode


class MoriPeer(Peer):
    """One connection to a peer's engine."""

    def __init__(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], remote: Remote, memories: list[MemoryDesc]
    ) -> None:
        super().__init__(endpoint, regions)
        self.remote = remote
        self.memories = memories
        self.connected = True


class MoriEngine(TransferEngine):
    """One engine of MORI with one backend. Its key is of this incarnation alone: MORI never rebuilds a
    queue pair, so a peer that restarted under its old key could not be written to."""

    def __init__(
        self, library: Library, native: NativeEngine, transport: EffectiveTransport, *, gpus: bool, aux: bool
    ) -> None:
        super().__init__()
        kinds = CAPABILITIES.memory_kinds if gpus else {DeviceKind.CPU}
        self.capabilities = attrs.evolve(CAPABILITIES, memory_kinds=frozenset(kinds), aux=aux)
        self.effective_transport = transport
        self.library = library
        self.flights = Flights()
        self._native: NativeEngine | None = native
        self._desc = native.get_engine_desc()  # its port is only known once the backend is there
        self._memories: list[MemoryDesc] = []
        self._meeting = threading.Lock()  # guards _native, _remotes and what is in them
        self._remotes: dict[str, Remote] = {}

    @property
    def native(self) -> NativeEngine:
        """MORI's engine, until this one is closed."""
        if (native := self._native) is None:
            self._check_usable()
        assert native is not None
        return native

    def endpoint(self) -> bytes:
        return self._desc.key.encode()

    def do_register(self, regions: Sequence[Region]) -> bytes:
        _check_memory(regions)
        for region in regions:
            device = -1 if region.device.kind is DeviceKind.CPU else region.device.index
            place = self._place(region.device)
            try:
                memory = self.native.register_memory(region.address, region.length, device, place)
            except (RuntimeError, ValueError, TypeError) as error:
                self._forget_memory()
                raise RegistrationError(
                    f"MORI does not register region {region.name!r}",
                    f"{error}; {region.length} bytes on {region.device}",
                    "look whether the memory is what its device says, and at pdcore doctor mori",
                ) from error
            self._memories.append(memory)
        return msgspec.msgpack.encode(_Export(self._desc.pack(), [m.pack() for m in self._memories]))

    def do_deregister(self) -> None:
        if not self.flights.settle(Deadline.after(SETTLE)):
            raise RegistrationError(
                "memory of a MORI engine cannot be deregistered",
                f"{len(self.flights)} transfers are under way, and MORI would go on using it",
                "wait for their end, or close the engine",
            )
        self._forget_memory()

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        self._revisit()
        peer = self._read(endpoint, regions, native)
        desc = peer.remote.desc
        if why := peer.remote.lost or self._wire_up(peer, deadline):
            self.do_disconnect(peer)
            raise EngineError(
                f"the MORI engine {desc.key[:8]} at {desc.host}:{desc.port} cannot be connected",
                why,
                "look whether that worker runs, restart it if it does, and whether a firewall is between",
            )
        return peer

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        assert isinstance(peer, MoriPeer)
        remote = peer.remote
        if remote.lost:
            return Finished(remote.failure(FailureCode.PEER_LOST, f"it failed before, {remote.lost}"))
        transfer = MoriTransfer(remote, self.flights)
        if not self.flights.admit(transfer):
            self._check_usable()
        if reason := transfer.post(self.native, self._requests(peer, batch)):
            remote.lose(reason)
        return transfer

    def prepare_raw(self, peer: Peer, batch: WriteBatch) -> RawWrite:
        assert isinstance(peer, MoriPeer)
        engine = self.native
        calls = [([a], [b], [c], [d], [sizes], [0]) for a, b, c, d, sizes in self._requests(peer, batch)]

        def write() -> None:
            for [status] in [engine.batch_write(*call) for call in calls]:
                status.WaitFor(-1)
                if not status.Succeeded():
                    raise peer.remote.failure(FailureCode.ENGINE, status.Message())

        return write

    def do_disconnect(self, peer: Peer) -> None:
        assert isinstance(peer, MoriPeer)
        remote = peer.remote
        with self._meeting:
            last = peer.connected and remote.users == 1
            remote.users -= peer.connected
            peer.connected = False
            if last and self._native is not None:
                self._native.deregister_remote_engine(remote.desc)
        self._revisit()

    def do_close(self) -> None:
        if not self.flights.settle(Deadline.after(SETTLE), shut=True):
            _unproven.append(self)
            raise EngineError(
                "a MORI engine cannot be closed",
                f"{len(self.flights)} transfers have not ended after {SETTLE:g} s, and nothing stops them",
                "end the process before its memory is used for anything else",
            )
        self._forget_memory()
        with self._meeting:
            self._native = None

    def _revisit(self) -> None:
        """Look which peers are gone that nobody is connected to, and forget all that leave no doubt."""
        with self._meeting:
            left = [remote for remote in self._remotes.values() if not remote.users]
        deadline = Deadline.after(PROBE)
        for remote in left:
            why = ask(remote.desc.host, remote.desc.port, deadline) if remote.desc.port else None
            remote.gone |= isinstance(why, ConnectionRefusedError)
            doubt = self.flights.reach(remote) or remote.lost or remote.astray
            with self._meeting:
                if not remote.users and remote.desc.key in self._remotes:
                    del self._remotes[remote.desc.key]
                    if doubt and not remote.gone:  # it is the last to be asked next time
                        self._remotes[remote.desc.key] = remote

    def _place(self, device: Device) -> object:
        places = self.library.module.MemoryLocationType
        return places.CPU if device.kind is DeviceKind.CPU else places.GPU

    def _forget_memory(self) -> None:
        while self._memories:
            self.native.deregister_memory(self._memories.pop())

    def _requests(self, peer: MoriPeer, batch: WriteBatch) -> Iterator[Request]:
        # MORI converts lists faster than arrays.
        here, there, sizes = (a.tolist() for a in (batch.local_offsets, batch.remote_offsets, batch.lengths))
        starts = batch.starts.tolist()
        pairs = zip(batch.local_regions.tolist(), batch.remote_regions.tolist(), strict=True)
        for number, (local, remote) in enumerate(pairs):
            part = slice(starts[number], starts[number + 1])
            yield self._memories[local], here[part], peer.memories[remote], there[part], sizes[part]

    def _read(self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes) -> MoriPeer:
        """Read a peer's export. A wrong size or owner of a region would end the process over there."""
        try:
            export = _read_export(native)
            desc = self.library.engine_desc(export.engine)
            memories = [self.library.memory_desc(packed) for packed in export.memories]
            expected = [(desc.key, region.length, self._place(region.device)) for region in regions]
            if desc.key.encode() != endpoint or [(m.engine_key, m.size, m.loc) for m in memories] != expected:
                there = f"{len(memories)} memories of engine {desc.key[:40]}, for {len(regions)} regions"
                raise msgspec.DecodeError(f"{there} at {endpoint[:40]!r}")
        except (msgspec.DecodeError, RuntimeError) as error:
            raise EngineError(
                "MORI does not accept a peer's export",
                f"{error}",
                "run the same MORI and the same backend variant on both sides",
            ) from error
        with self._meeting:
            self.native.register_remote_engine(desc)
            remote = self._remotes.setdefault(desc.key, Remote(desc))
            remote.users += 1
        return MoriPeer(endpoint, regions, remote, memories)

    def _wire_up(self, peer: MoriPeer, deadline: Deadline) -> str:
        """Have MORI connect, and pin both sides' memory, by writing nothing; return why it cannot, or "".

        Otherwise the first writes would wait for the control plane, in the thread that calls ``send``.
        """
        desc = peer.remote.desc
        # While MORI itself connects to who doesn't answer, it holds up the transfers to all others.
        if desc.port and (refused := ask(desc.host, desc.port, deadline)):
            return str(refused)
        numbers = {region.name: number for number, region in enumerate(self.regions)}
        pairs = [(numbers[r.name], n) for n, r in enumerate(peer.regions) if r.name in numbers]
        transfer = MoriTransfer(peer.remote, self.flights)
        if not self.flights.admit(transfer):
            self._check_usable()
        empty = (
            (self._memories[n], [0], peer.memories[m], [0], [0]) for n, m in pairs if not deadline.expired
        )
        transfer.post(self.native, empty)
        state = transfer.wait(deadline)
        if state is TransferState.DONE and not deadline.expired:
            return ""
        return transfer.error.there_is if transfer.error else "it was not connected before the deadline"


def _check_memory(regions: Sequence[Region]) -> None:
    """Refuse what MORI takes and ends the process or damages another registration for, later."""
    bases: dict[int, str] = {}
    for region in regions:
        twin, host = bases.get(region.address), region.device.kind is DeviceKind.CPU
        if twin or (host and not _is_mapped(region)):
            mapped = "is not mapped, and MORI would end the process when it is used"
            wrong = f"begins where {twin!r} does, and MORI would mix them up" if twin else mapped
            raise RegistrationError(
                f"region {region.name!r} {wrong}",
                f"{region.length} bytes at {region.address:#x} on {region.device}",
                "register memory that is allocated, and each place once",
            )
        bases[region.address] = region.name


def _is_mapped(region: Region) -> bool:
    """Whether all pages of host memory exist, as the kernel tells."""
    first = region.address // mmap.PAGESIZE * mmap.PAGESIZE
    length = region.address + region.length - first
    seen = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
    return bool(ctypes.CDLL(None).mincore(ctypes.c_void_p(first), ctypes.c_size_t(length), seen) == 0)
