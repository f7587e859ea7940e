"""An engine over TCP sockets that keeps the contract, so that its lies can be about what sockets do.

A thread of the receiver reads what comes into its memory and acknowledges each batch; a thread per peer of
the writer sends. What the sockets hold when the writer closes still lands.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import socket
import struct
import threading
from collections.abc import Sequence

import numpy as np

from pdcore.contract.engine import EngineCapabilities, Peer, TransferEngine
from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.contract.regions import OffsetArray, Region, RegionInfo, WriteBatch
from pdcore.errors import EngineError, FailureCode, KVTransferError
from pdcore.model import Certainty, Deadline, EffectiveTransport

CAPABILITIES = EngineCapabilities(
    asynchronous=True, remote_bounds_checked=True, descriptors=2, descriptors_per_peer=2
)

HELLO, COUNT = struct.Struct("!16sB"), struct.Struct("!I")
OK, REFUSED = b"\0", b"\1"


class SocketTransfer(Transfer):
    """A batch that a thread sends."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._quiescence = Quiescence.IN_FLIGHT

    def end(self, why: str, quiescence: Quiescence, code: FailureCode = FailureCode.ENGINE) -> None:
        """End it; with a reason, it failed."""
        if not self._ended.is_set():
            if why:
                self.error = KVTransferError(code, "a write over a socket failed", why, "send it again")
            self._quiescence = quiescence
            self._ended.set()

    def poll(self) -> TransferState:
        if not self._ended.is_set():
            return TransferState.PENDING
        return TransferState.FAILED if self.error else TransferState.DONE

    def wait(self, deadline: Deadline) -> TransferState:
        self._ended.wait(deadline.remaining())
        return self.poll()

    @property
    def quiescence(self) -> Quiescence:
        return self._quiescence


class SocketPeer(Peer):
    """A connection, and the thread that sends over it."""

    def __init__(self, endpoint: bytes, regions: tuple[RegionInfo, ...], bases: OffsetArray) -> None:
        super().__init__(endpoint, regions)
        self.bases = bases
        self.connection = socket.socket()
        self.jobs: queue.SimpleQueue[tuple[SocketTransfer, list[bytes | memoryview]] | None] = (
            queue.SimpleQueue()
        )
        self.closed = False
        self.thread = threading.Thread(target=self._send_all, daemon=True)

    def _send_all(self) -> None:
        while (job := self.jobs.get()) is not None:
            transfer, pieces = job
            try:
                for piece in pieces:
                    self.connection.sendall(piece)
                answer = self.connection.recv(1)
            except OSError as error:
                answer, why = b"", str(error)
            else:
                why = "the peer closed the connection"
            if answer == OK:
                transfer.end("", Quiescence.DRAINED)
            elif answer == REFUSED:
                transfer.end("the peer refused an address", Quiescence.DRAINED)
            elif self.closed:
                transfer.end("this engine was closed", Quiescence.UNKNOWN)
            else:  # who has closed its end reads no more
                transfer.end(why, Quiescence.DRAINED, FailureCode.PEER_LOST)

    def hang_up(self) -> None:
        """End the connection and its thread; what was under way fails."""
        self.closed = True
        self.jobs.put(None)
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.connection.close()
        with contextlib.suppress(queue.Empty):
            while (job := self.jobs.get_nowait()) is not None:
                job[0].end("this engine was closed", Quiescence.DRAINED)


class SocketEngine(TransferEngine):
    """See the module."""

    capabilities = CAPABILITIES
    effective_transport = EffectiveTransport("tcp", Certainty.VERIFIED, "it is ours")

    def __init__(self) -> None:
        super().__init__()
        self.nonce = os.urandom(16)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.bases: OffsetArray = np.zeros(0, np.uint64)
        self.peers: list[SocketPeer] = []
        self.accepted: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept_all, daemon=True)]
        self.threads[0].start()

    def endpoint(self) -> bytes:
        return b"socket" + self.nonce + COUNT.pack(self.listener.getsockname()[1])

    def do_register(self, regions: Sequence[Region]) -> bytes:
        self.bases = np.array([region.address for region in regions], np.uint64)
        return self.bases.tobytes()

    def do_deregister(self) -> None:
        return

    def do_connect(
        self, endpoint: bytes, regions: tuple[RegionInfo, ...], native: bytes, deadline: Deadline
    ) -> Peer:
        peer = SocketPeer(endpoint, regions, np.frombuffer(native, np.uint64))
        try:
            if endpoint[:6] != b"socket":
                raise OSError("this is no endpoint of a socket engine")
            peer.connection.settimeout(max(deadline.remaining(), 0.001))
            peer.connection.connect(("127.0.0.1", COUNT.unpack(endpoint[22:])[0]))
            peer.connection.sendall(HELLO.pack(endpoint[6:22], 0))
            if peer.connection.recv(1) != OK:
                raise OSError("another engine answers there")
        except (OSError, OverflowError) as error:
            peer.connection.close()
            raise EngineError("a peer cannot be reached", str(error), "look whether it runs") from error
        peer.connection.settimeout(None)
        peer.thread.start()
        self.peers.append(peer)
        return peer

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        assert isinstance(peer, SocketPeer)
        source, target, length = batch.absolute(self.bases, peer.bases)
        head = np.stack((target, length), axis=1)
        pieces: list[bytes | memoryview] = [COUNT.pack(len(batch)), head.tobytes()]
        pieces += [memory_at(*entry) for entry in zip(source.tolist(), length.tolist(), strict=True)]
        transfer = SocketTransfer()
        if peer.closed:
            transfer.end("the peer was disconnected", Quiescence.DRAINED)
        else:
            peer.jobs.put((transfer, pieces))
        return transfer

    def do_disconnect(self, peer: Peer) -> None:
        assert isinstance(peer, SocketPeer)
        if not peer.closed:
            peer.hang_up()

    def do_close(self) -> None:
        for peer in self.peers:
            self.do_disconnect(peer)
        for each in (self.listener, *self.accepted):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self.threads:
            thread.join()

    def _accept_all(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.accepted.append(connection)
                self.threads.append(threading.Thread(target=self._receive, args=(connection,), daemon=True))
                self.threads[-1].start()

    def _receive(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, struct.error), connection:
            nonce, _ = HELLO.unpack(connection.recv(HELLO.size, socket.MSG_WAITALL))
            if nonce != self.nonce:
                return
            connection.sendall(OK)
            while True:
                count = COUNT.unpack(connection.recv(COUNT.size, socket.MSG_WAITALL))[0]
                head = bytearray(16 * count)
                receive_into(connection, memoryview(head))
                entries = np.frombuffer(head, np.uint64).reshape(-1, 2).tolist()
                good = [self.receive_entry(connection, *entry) for entry in entries]
                connection.sendall(OK if all(good) else REFUSED)

    def receive_entry(self, connection: socket.socket, address: int, length: int) -> bool:
        """Read one entry to its address, or to nowhere if that lies outside the regions."""
        inside = any(r.address <= address and address + length <= r.address + r.length for r in self.regions)
        receive_into(connection, memory_at(address, length) if inside else memoryview(bytearray(length)))
        return inside


def memory_at(address: int, length: int) -> memoryview:
    """Return this process's memory at an address."""
    return memoryview((ctypes.c_char * length).from_address(address)).cast("B")


def receive_into(connection: socket.socket, memory: memoryview) -> None:
    """Fill memory from a connection."""
    while len(memory):
        got = connection.recv_into(memory)
        if not got:
            raise OSError("the writer hung up")
        memory = memory[got:]
