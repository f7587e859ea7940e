"""The adapter: regions and offsets to NIXL's descriptors, and its handles to transfers."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Sequence

import attrs
import msgspec

from pd_nixl.config import rdma_devices
from pd_nixl.library import Agent, Library, Registration
from pd_nixl.lists import MEMORY, Side, requests
from pd_nixl.pump import Pump
from pd_nixl.transfer import NixlTransfer
from pdcore.contract.engine import EngineCapabilities, Peer, RawWrite, TransferEngine
from pdcore.contract.outcome import Quiescence, Transfer
from pdcore.contract.regions import Region, RegionInfo, WriteBatch
from pdcore.errors import EngineClosedError, EngineError, RegistrationError
from pdcore.host.sockets import Unread
from pdcore.model import Deadline, DeviceKind, EffectiveTransport, new_incarnation

__all__ = ["CAPABILITIES", "NixlEngine"]

CAPABILITIES = EngineCapabilities(
    entry_cost=2.5e-6,
    asynchronous=True,
    memory_kinds=frozenset(MEMORY),
    drained_on_failure=True,
    aux=True,
    descriptors=24,
    descriptors_per_peer=8,
)

SETTLE = 5.0
"""Seconds that ``close`` gives the transfers under way. The agent's end stops the others."""
SYNCHRONOUS = 30.0
"""Seconds that ``write`` waits where it is not asynchronous; a longer transfer goes on as PENDING."""
TURNS = 2
"""Turns after which nothing that was read from a socket waits: each takes in all that was read before it."""
MALFORMED: tuple[type[Exception], ...] = (msgspec.DecodeError, OverflowError)


@attrs.frozen
class _Export:
    agent: str
    metadata: bytes
    addresses: tuple[int, ...]


# Made at import: msgspec 0.22 crashes when two threads are the first to decode a type.
_read_export = msgspec.msgpack.Decoder(_Export).decode


class NixlPeer(Peer):
    """A remote agent: its name, and where its regions lie. ``connected`` until it is disconnected."""

    def __init__(self, endpoint: bytes, regions: tuple[RegionInfo, ...], name: str, side: Side) -> None:
        super().__init__(endpoint, regions)
        self.name = name
        self.side = side
        self.connected = True


class NixlEngine(TransferEngine):
    """One agent without a progress thread: lanes look at their transfers, the pump does the rest."""

    def __init__(
        self, library: Library, backend: str, params: dict[str, str], transport: EffectiveTransport
    ) -> None:
        super().__init__()
        # Left to itself, UCX copies within ``transfer`` between processes of one host (CMA): then ``write``
        # waits in every case, for an engine is either asynchronous or it is not.
        self.capabilities = attrs.evolve(
            CAPABILITIES,
            asynchronous=transport.name != "ucx",
            settles=transport.name == "tcp" or (transport.name == "ucx" and not rdma_devices()),
        )
        self.effective_transport = transport
        self.library = library
        self._name = new_incarnation()
        self._agent: Agent | None = library.agent(self._name, backend, params)
        self._registrations: list[Registration] = []
        self._side = Side(self.agent, "", (), ())
        self._meeting = threading.Lock()  # guards _agents and the peers' connected
        self._agents: set[str] = set()
        self._lock = threading.Lock()  # guards _agent, _transfers and _peers
        self._transfers: weakref.WeakSet[NixlTransfer] = weakref.WeakSet()
        self._peers: weakref.WeakSet[NixlPeer] = weakref.WeakSet()
        self._pump = Pump(self._name[:8], self._turn)

    @property
    def agent(self) -> Agent:
        """The agent, until the engine is closed."""
        if (agent := self._agent) is None:
            self._check_usable()
        assert agent is not None
        return agent

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
        self._side = Side(self.agent, "", addresses, [r.info for r in regions])
        return msgspec.msgpack.encode(_Export(self._name, self.agent.get_agent_metadata(), addresses))

    def do_deregister(self) -> None:
        self._side = Side(self.agent, "", (), ())
        while self._registrations:
            self.agent.deregister_memory(self._registrations.pop())

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        try:
            export = _read_export(native)
            if endpoint != export.agent.encode() or len(export.addresses) != len(regions):
                there = f"{len(export.addresses)} addresses of agent {export.agent[:40]}"
                raise msgspec.DecodeError(f"{there}, for {len(regions)} regions at {endpoint[:40]!r}")
            with self._meeting:
                self._forget_agents()
                if export.agent != self._name:
                    self.agent.add_remote_agent(export.metadata)
                    self._agents.add(export.agent)
                side = Side(self.agent, export.agent, export.addresses, regions)
                peer = NixlPeer(endpoint, regions, export.agent, side)
                with self._lock:
                    self._peers.add(peer)
                    if self._agent is None:
                        side.lists.clear()
        except MALFORMED + self.library.transport_errors as error:
            raise EngineError(
                "NIXL does not accept a peer's metadata",
                f"{type(error).__name__}: {error}",
                "run the same NIXL, and the same backend of it, on both sides",
            ) from error
        self._check_usable()
        return peer

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        assert isinstance(peer, NixlPeer)
        with self._lock:
            agent = self._agent
            transfer = NixlTransfer(self.library, agent, peer.name)
            self._transfers.add(transfer)
        if agent is None:
            transfer.give_up()
        else:
            transfer.post(agent, requests(agent, peer.name, self._side, peer.side, batch))
        if not self.capabilities.asynchronous:
            transfer.wait(Deadline.after(SYNCHRONOUS))
        return transfer

    def settle(self, endpoint: bytes, deadline: Deadline) -> Quiescence:
        """UCX takes in what it has read from a socket in the same turn; CMA's copies end with their process.

        With an RDMA device UCX may use that, and a GPU's memory it fills by other ways: nothing is known.
        """
        if not self.capabilities.settles or any(r.device.kind is not DeviceKind.CPU for r in self.regions):
            return Quiescence.UNKNOWN
        unread = Unread()
        while unread.left():
            if deadline.expired:
                return Quiescence.IN_FLIGHT
            self._turn()
        for _ in range(TURNS):
            self._turn()
        return Quiescence.DRAINED

    def prepare_raw(self, peer: Peer, batch: WriteBatch) -> RawWrite:
        assert isinstance(peer, NixlPeer)
        agent = self.agent
        handles = list(requests(agent, peer.name, self._side, peer.side, batch))

        def write() -> None:
            for handle in handles:
                agent.transfer(handle)
                while agent.check_xfer_state(handle) != "DONE":
                    pass

        return write

    def do_disconnect(self, peer: Peer) -> None:
        assert isinstance(peer, NixlPeer)
        with self._meeting:
            peer.connected = False
            self._forget_agents()

    def do_close(self) -> None:
        self._pump.stop()
        with self._lock:
            agent, self._agent = self.agent, None
            transfers, peers = list(self._transfers), list(self._peers)
        deadline = Deadline.after(SETTLE)
        for transfer in transfers:
            transfer.wait(deadline)
            transfer.give_up()
        # A prepared list keeps the agent alive, and only its end stops all bytes.
        for side in (self._side, *(peer.side for peer in peers)):
            side.lists.clear()
        while self._registrations:
            agent.deregister_memory(self._registrations.pop())

    def _forget_agents(self) -> None:
        """Remove the agents that nobody is connected to; one that is written to stays, or NIXL would
        not say when its bytes have landed."""
        with self._lock:
            needed = {peer.name for peer in self._peers if peer.connected}
            needed |= {t.name for t in self._transfers if t.quiescence is Quiescence.IN_FLIGHT}
        for name in self._agents - needed:
            self._agents.remove(name)
            with contextlib.suppress(EngineClosedError, *self.library.transport_errors):
                self.agent.remove_remote_agent(name)

    def _turn(self) -> None:
        with contextlib.suppress(*self.library.transport_errors):
            self.agent.get_new_notifs()
