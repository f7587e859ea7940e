"""The sending side: a write takes a connection of its own, and returns when the peer has taken all."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Sequence

import numpy as np

from pd_parcel import parcel
from pd_parcel.door import NOTHING, Door
from pdcore.contract.engine import EngineCapabilities, Peer, TransferEngine
from pdcore.contract.outcome import Finished, Quiescence, Transfer
from pdcore.contract.regions import OffsetArray, Region, RegionInfo, WriteBatch
from pdcore.errors import EngineError, FailureCode, KVTransferError
from pdcore.model import Certainty, Deadline, EffectiveTransport

TRANSPORT = "tcp"
LAST_WORDS = 0.5
"""Seconds to hear why a peer hung up."""
CAPABILITIES = EngineCapabilities(
    entry_cost=3e-6,
    remote_bounds_checked=True,
    revocable=True,
    settles=True,
    descriptors=2,
    descriptors_per_peer=8,
)


class ParcelPeer(Peer):
    """Where a peer is, and the connections to it that no write uses."""

    def __init__(self, endpoint: bytes, regions: tuple[RegionInfo, ...], key: bytes) -> None:
        super().__init__(endpoint, regions)
        where = json.loads(endpoint)
        self.place = (where["host"], where["port"])
        self.key = key
        self.gone = False
        self.idle: list[socket.socket] = []
        self.busy: set[socket.socket] = set()


class ParcelEngine(TransferEngine):
    """Synchronous: ``write`` returns when the far side has taken all, or silent for ``patience`` s."""

    capabilities = CAPABILITIES
    effective_transport = EffectiveTransport(TRANSPORT, Certainty.VERIFIED, "it is all that there is")

    def __init__(self, host: str, patience: float) -> None:
        super().__init__()
        self._patience = patience
        try:
            self._door = Door(host)
        except OSError as error:
            happened = "the backend 'parcel' cannot listen"
            raise EngineError(
                happened, f"{host}: {error}", "set PDCORE_HOST to an address of this machine"
            ) from error
        life = {"host": self._door.host, "port": self._door.port, "life": os.urandom(8).hex()}
        self._endpoint = json.dumps(life).encode()
        self._bases: OffsetArray = NOTHING
        self._quiet = threading.Condition()  # guards what follows, and each peer's connections
        self._peers: set[ParcelPeer] = set()
        self._writing = 0
        self._ended = False

    def endpoint(self) -> bytes:
        return self._endpoint

    def do_register(self, regions: Sequence[Region]) -> bytes:
        self._bases = np.array([r.address for r in regions], np.uint64)
        return self._door.register(self._bases, np.array([r.length for r in regions], np.uint64))

    def do_deregister(self) -> None:
        self._door.deregister()
        with self._quiet:
            self._quiet.wait_for(lambda: not self._writing)

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        try:
            peer = ParcelPeer(endpoint, regions, native)
            peer.idle.append(self._dial(peer, min(self._patience, deadline.remaining())))
        except (parcel.LostError, ValueError, KeyError, TypeError) as error:
            raise EngineError(
                "a peer of the backend 'parcel' cannot be reached",
                f"{endpoint[:200]!r}: {error}",
                "see that nothing stands between the hosts",
            ) from error
        with self._quiet:
            self._peers.add(peer)
        return peer

    def _dial(self, peer: ParcelPeer, seconds: float) -> socket.socket:
        try:
            link = socket.create_connection(peer.place, timeout=max(0.001, seconds))
        except OSError as error:
            raise parcel.LostError(str(error)) from error
        link.settimeout(self._patience)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            parcel.send_text(link, peer.key)
            parcel.send_text(link, self._endpoint)
        except parcel.LostError:
            link.close()
            raise
        return link

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        assert isinstance(peer, ParcelPeer)
        with self._quiet:
            if self._ended or peer.gone:
                what = "this engine was closed" if self._ended else "the peer was disconnected"
                return Finished(_failure(FailureCode.ENGINE, peer, what))
            self._writing += 1
            link = peer.idle.pop() if peer.idle else None
        try:
            return self._write(peer, batch, link)
        finally:
            with self._quiet:
                self._writing -= 1
                self._quiet.notify_all()

    def _write(self, peer: ParcelPeer, batch: WriteBatch, link: socket.socket | None) -> Transfer:
        try:
            link = link or self._dial(peer, self._patience)
        except parcel.LostError as error:
            return Finished(_failure(FailureCode.PEER_LOST, peer, str(error)))
        with self._quiet:
            stopped = self._ended
            peer.busy.add(link)
        answer, sent = b"", False
        try:
            if not stopped:
                sent = True
                answer = self._send(link, peer, batch)
        except parcel.LostError as error:
            # What the kernel has taken may land yet: the receiver alone can prove that it does not.
            return Finished(_failure(FailureCode.PEER_LOST, peer, str(error)), Quiescence.UNKNOWN)
        finally:
            with self._quiet:
                peer.busy.discard(link)
                keep = answer == parcel.TAKEN and not peer.gone and not self._ended
                if keep:
                    peer.idle.append(link)
            if not keep:
                link.close()
        if answer == parcel.TAKEN:
            return Finished()
        return Finished(
            _failure(FailureCode.ENGINE, peer, answer.decode() if sent else "this engine was closed")
        )

    def _send(self, link: socket.socket, peer: ParcelPeer, batch: WriteBatch) -> bytes:
        """Send a parcel and return the answer: TAKEN, or why it was refused before a byte was written."""
        counts = batch.starts[1:] - batch.starts[:-1]
        regions = batch.remote_regions.astype(np.uint64).repeat(counts)
        parcel.send_table(link, np.stack((regions, batch.remote_offsets, batch.lengths)))
        sources, _, lengths = batch.absolute(self._bases, peer.region_lengths)
        try:
            for address, length in zip(sources.tolist(), lengths.tolist(), strict=True):
                parcel.send(link, parcel.memory(address, length))
        except parcel.LostError:
            link.settimeout(LAST_WORDS)
            with contextlib.suppress(parcel.LostError):  # it says why before it hangs up
                return parcel.receive_text(link)
            raise
        return parcel.receive_text(link)

    def admit(self, endpoint: bytes) -> None:
        self._door.admit(endpoint)

    def revoke(self, endpoint: bytes, deadline: Deadline) -> Quiescence:
        return self._door.expel(endpoint, deadline.remaining())

    def settle(self, endpoint: bytes, deadline: Deadline) -> Quiescence:
        return self._door.expel(endpoint, deadline.remaining())

    def do_disconnect(self, peer: Peer) -> None:
        assert isinstance(peer, ParcelPeer)
        with self._quiet:
            peer.gone = True
            self._peers.discard(peer)
            idle, peer.idle = peer.idle, []
        for link in idle:
            link.close()

    def do_close(self) -> None:
        with self._quiet:
            self._ended = True
            peers = list(self._peers)
            for link in [link for peer in peers for link in peer.busy]:
                with contextlib.suppress(OSError):  # wakes the thread that writes
                    link.shutdown(socket.SHUT_RDWR)
        for peer in peers:
            self.do_disconnect(peer)
        self._door.close()
        with self._quiet:
            self._quiet.wait_for(lambda: not self._writing)


def _failure(code: FailureCode, peer: ParcelPeer, there_is: str) -> KVTransferError:
    host, port = peer.place
    happened = f"a parcel to {host}:{port} was not taken"
    return KVTransferError(code, happened, there_is, "look at the log of that side")
