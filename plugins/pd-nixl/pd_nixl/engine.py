"""The adapter: regions and offsets to NIXL's descriptors, and its handles to transfers."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence

import attrs
import msgspec
import numpy as np
import numpy.typing as npt

from pd_nixl.library import Agent, Handle, Library, Registration
from pd_nixl.pump import Pump
from pdcore.engine import EffectiveTransport, EngineCapabilities, Peer, RawWrite, TransferEngine
from pdcore.errors import EngineError, FailureCode, KVTransferError, RegistrationError
from pdcore.model import Deadline, DeviceKind, new_incarnation
from pdcore.outcome import Finished, Quiescence, Transfer, TransferState
from pdcore.regions import OffsetArray, Region, RegionInfo, WriteBatch

__all__ = ["CAPABILITIES", "NixlEngine"]

CAPABILITIES = EngineCapabilities(
    entry_cost=2.5e-6,
    asynchronous=True,
    memory_kinds=frozenset({DeviceKind.CPU, DeviceKind.CUDA}),
    drained_on_failure=True,
    aux=True,
)

MEMORY = {DeviceKind.CPU: "DRAM", DeviceKind.CUDA: "VRAM"}
KINDS = list(MEMORY)
SETTLE = 5.0
"""Seconds that ``close`` gives the transfers under way. The agent's end stops the others."""
SYNCHRONOUS = 30.0
"""Seconds that ``write`` waits where it is not asynchronous; a longer transfer goes on as PENDING."""
SPINS = 64
"""Looks at a transfer without a pause: most tiny ones end within."""

PAUSE = 0.0001
"""Seconds between two later looks; NIXL tells nobody when a transfer ends."""


@attrs.frozen
class _Export:
    agent: str
    metadata: bytes
    addresses: tuple[int, ...]


class _Side:
    """Where the regions of one side lie, as arrays by region: address, kind of memory, device."""

    def __init__(self, addresses: Sequence[int], regions: Sequence[RegionInfo]) -> None:
        self.bases: OffsetArray = np.array(addresses, np.uint64)
        self.kinds = np.array([KINDS.index(r.device.kind) for r in regions], np.int64)
        self.devices: OffsetArray = np.array([r.device.index for r in regions], np.uint64)

    def descriptors(
        self, regions: npt.NDArray[np.int64], offsets: OffsetArray, lengths: OffsetArray
    ) -> npt.NDArray[np.uint64]:
        """Return (address, length, device) per entry, uint64 of shape (N, 3)."""
        out = np.empty((len(offsets), 3), np.uint64)
        np.add(self.bases[regions], offsets, out=out[:, 0])
        out[:, 1] = lengths
        out[:, 2] = self.devices[regions]
        return out


class NixlPeer(Peer):
    """A remote agent: its name, and where its regions lie."""

    def __init__(self, endpoint: bytes, regions: tuple[RegionInfo, ...], export: _Export) -> None:
        super().__init__(endpoint, regions)
        self.agent = export.agent
        self.side = _Side(export.addresses, regions)


class NixlTransfer(Transfer):
    """The posted handles of one batch, one per kind of memory. The lock guards ``_open``.

    A handle is released once, when it has settled: releasing it earlier would not stop its bytes.
    """

    def __init__(self, engine: NixlEngine, agent: Agent, handles: list[Handle], peer: NixlPeer) -> None:
        self.peer = peer
        self._engine = engine
        self._agent: Agent | None = agent
        self._open = handles
        self._lock = threading.Lock()

    def poll(self) -> TransferState:
        with self._lock:
            self._open = [handle for handle in self._open if not self._settled(handle)]
            if self._open:
                return TransferState.PENDING
            self._agent = None
        return TransferState.FAILED if self.error else TransferState.DONE

    def wait(self, deadline: Deadline) -> TransferState:
        pause = threading.Event()
        looks = 0
        while (state := self.poll()) is TransferState.PENDING and not deadline.expired:
            looks += 1
            pause.wait(PAUSE if looks > SPINS else 0)
        return state

    @property
    def quiescence(self) -> Quiescence:
        return Quiescence.IN_FLIGHT if self._open else Quiescence.DRAINED

    def give_up(self, error: KVTransferError) -> None:
        """End it because the engine is closed: the agent takes the bytes with it."""
        with self._lock:
            for handle in self._open:
                self.error = error
                handle.release()
            self._open, self._agent = [], None

    def _settled(self, handle: Handle) -> bool:
        try:
            if self._agent is not None and self._agent.check_xfer_state(handle) != "DONE":
                return False
        except self._engine.library.transport_errors as error:
            self.error = self._engine.failure(self.peer, error)
        handle.release()
        return True


class NixlEngine(TransferEngine):
    """One agent without a progress thread: lanes look at their transfers, the pump does the rest."""

    def __init__(
        self, library: Library, backend: str, params: dict[str, str], transport: EffectiveTransport
    ) -> None:
        super().__init__()
        # Left to itself, UCX copies within ``transfer`` between processes of one host (CMA): then ``write``
        # waits in every case, for an engine is either asynchronous or it is not.
        self.capabilities = attrs.evolve(CAPABILITIES, asynchronous=transport.name != "ucx")
        self.effective_transport = transport
        self.library = library
        self._name = new_incarnation()
        self._agent: Agent | None = library.agent(self._name, backend, params)
        self._registrations: list[Registration] = []
        self._side = _Side((), ())
        self._lock = threading.Condition()  # guards _agent, _connected, _transfers and _posting
        self._posting = 0
        self._connected: Counter[str] = Counter()
        self._transfers: weakref.WeakSet[NixlTransfer] = weakref.WeakSet()
        self._pump = Pump(self._name[:8], self._turn)

    @property
    def agent(self) -> Agent:
        """The agent, until the engine is closed."""
        assert self._agent is not None
        return self._agent

    def endpoint(self) -> bytes:
        return self._name.encode()

    def expect(self, rooms: int) -> None:
        self._pump.expect(rooms)

    def do_register(self, regions: Sequence[Region]) -> bytes:
        for region in regions:
            entry = [(region.address, region.length, region.device.index, "")]
            try:
                self._registrations.append(self.agent.register_memory(entry, MEMORY[region.device.kind]))
            except self.library.transport_errors as error:
                self.do_deregister()
                raise RegistrationError(
                    f"NIXL does not register region {region.name!r}",
                    f"{type(error).__name__}: {error}; {region.length} bytes on {region.device}",
                    "look whether the memory is what its device says, and at pdcore doctor nixl",
                ) from error
        addresses = tuple(r.address for r in regions)
        self._side = _Side(addresses, [r.info for r in regions])
        return msgspec.msgpack.encode(_Export(self._name, self.agent.get_agent_metadata(), addresses))

    def do_deregister(self) -> None:
        while self._registrations:
            self.agent.deregister_memory(self._registrations.pop())

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        refusals: tuple[type[Exception], ...] = (msgspec.DecodeError, *self.library.transport_errors)
        try:
            export = msgspec.msgpack.decode(native, type=_Export)
            if endpoint != export.agent.encode():
                raise msgspec.DecodeError(f"the endpoint is {endpoint[:40]!r}, the metadata {export.agent}'s")
            with self._lock:
                if export.agent != self._name:
                    self.agent.add_remote_agent(export.metadata)
                self._connected[export.agent] += 1
        except refusals as error:
            raise EngineError(
                "NIXL does not accept a peer's metadata",
                f"{type(error).__name__}: {error}",
                "run the same NIXL, and the same backend of it, on both sides",
            ) from error
        return NixlPeer(endpoint, regions, export)

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        assert isinstance(peer, NixlPeer)
        handles: list[Handle] = []
        with self._lock:
            agent = self._agent
            if agent is None:
                return Finished(_closed(peer))
            transfer = NixlTransfer(self, agent, handles, peer)
            self._transfers.add(transfer)
            self._posting += 1
        try:
            for handle in self._requests(agent, peer, batch):
                handles.append(handle)
                agent.transfer(handle)
        except self.library.transport_errors as error:
            transfer.error = self.failure(peer, error)
        finally:
            with self._lock:
                self._posting -= 1
                self._lock.notify_all()
        if not self.capabilities.asynchronous:
            transfer.wait(Deadline.after(SYNCHRONOUS))
        return transfer

    def _requests(self, agent: Agent, peer: NixlPeer, batch: WriteBatch) -> Iterator[Handle]:
        """Make the requests of a batch, one per pair of memory kinds; the core has merged its runs."""
        counts = batch.starts[1:] - batch.starts[:-1]
        here, there = batch.local_regions.repeat(counts), batch.remote_regions.repeat(counts)
        local = self._side.descriptors(here, batch.local_offsets, batch.lengths)
        remote = peer.side.descriptors(there, batch.remote_offsets, batch.lengths)
        by_pair = self._side.kinds[batch.local_regions] * len(KINDS) + peer.side.kinds[batch.remote_regions]
        kinds = np.unique(by_pair).tolist()
        for kind in kinds:
            chosen = slice(None) if len(kinds) == 1 else (by_pair == kind).repeat(counts)
            ours, theirs = MEMORY[KINDS[kind // len(KINDS)]], MEMORY[KINDS[kind % len(KINDS)]]
            source, target = (
                agent.get_xfer_descs(local[chosen], ours),
                agent.get_xfer_descs(remote[chosen], theirs),
            )
            yield agent.initialize_xfer("WRITE", source, target, peer.agent)

    def prepare_raw(self, peer: Peer, batch: WriteBatch) -> RawWrite:
        assert isinstance(peer, NixlPeer)
        agent = self.agent
        handles = list(self._requests(agent, peer, batch))

        def write() -> None:
            for handle in handles:
                agent.transfer(handle)
                while agent.check_xfer_state(handle) != "DONE":
                    pass

        return write

    def do_disconnect(self, peer: Peer) -> None:
        assert isinstance(peer, NixlPeer)
        with self._lock, contextlib.suppress(*self.library.transport_errors):
            self._connected[peer.agent] -= 1
            if self._connected[peer.agent] == 0 and self._agent and peer.agent != self._name:
                self._agent.remove_remote_agent(peer.agent)

    def do_close(self) -> None:
        self._pump.stop()
        with self._lock:
            agent, self._agent = self.agent, None
            deadline = Deadline.after(SETTLE)
            self._lock.wait_for(lambda: not self._posting, deadline.remaining())
            transfers = list(self._transfers)
        for transfer in transfers:
            transfer.wait(deadline)
            transfer.give_up(_closed(transfer.peer))
        while self._registrations:
            agent.deregister_memory(self._registrations.pop())

    def failure(self, peer: NixlPeer, error: Exception) -> KVTransferError:
        """Return what an exception of NIXL means."""
        lost = isinstance(error, self.library.disconnect_errors)
        return KVTransferError(
            FailureCode.PEER_LOST if lost else FailureCode.ENGINE,
            f"NIXL failed to write to agent {peer.agent[:8]}",
            f"{type(error).__name__}: {error}",
            "send the request again, to another worker if this one is gone",
        )

    def _turn(self) -> None:
        with contextlib.suppress(*self.library.transport_errors):
            self.agent.get_new_notifs()


def _closed(peer: NixlPeer) -> KVTransferError:
    happened = f"a write to agent {peer.agent[:8]} ended with its engine"
    return KVTransferError(FailureCode.ENGINE, happened, "this engine was closed", "send before closing")
