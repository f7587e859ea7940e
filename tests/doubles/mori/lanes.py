"""How bytes move: a TCP connection and a thread per queue pair, and the owner's side of them.

A work request is one header and its bytes; the owner checks the bounds, copies, and answers one byte.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from errno import EAGAIN, EINPROGRESS, ENETUNREACH
from queue import SimpleQueue

from . import faults
from .flights import Flight

FLUSHED = "Work Request Flushed Error"
RETRY_EXCEEDED = (
    "transport retry counter exceeded Hint: transport retry limit exceeded; check peer liveness/connectivity"
)
REMOTE_ACCESS = "remote access error Hint: remote access error; verify the remote buffer is still registered"
LOCAL_PROTECTION = (
    "local protection error Hint: local protection error; verify the local buffer is still registered"
)

HEADER = struct.Struct("!BQQQ")
"""What is asked, memory id, offset, length (bytes)."""
ASK, WRITE = 0, 1
REFUSED, WRITTEN = b"\0", b"\1"
Completions = SimpleQueue[tuple[Flight, str | None] | None]


def dial(host: str, port: int) -> socket.socket:
    """Connect as the real control plane does: to IPv4 literals, within ``MORI_IO_CP_TIMEOUT_MS``."""
    try:
        socket.inet_aton(host)
    except OSError:
        raise RuntimeError(f"connect({host}:{port}): {os.strerror(ENETUNREACH)}") from None
    try:
        return socket.create_connection(
            (host, port), float(os.environ.get("MORI_IO_CP_TIMEOUT_MS", "5000")) / 1000
        )
    except TimeoutError:
        raise RuntimeError(f"connect({host}:{port}): {os.strerror(EINPROGRESS)}") from None
    except OSError as error:
        raise RuntimeError(f"connect({host}:{port}): {os.strerror(error.errno or 0)}") from None


def ask_size(connection: socket.socket, memory_id: int) -> int:
    """Ask an engine for the size (bytes) of one of its regions; 0: it knows no such region."""
    reason = " before EOF"
    try:
        connection.sendall(HEADER.pack(ASK, memory_id, 0, 0))
        if len(answer := connection.recv(8, socket.MSG_WAITALL)) == 8:
            return int.from_bytes(answer, "big")
    except OSError as error:
        number = EAGAIN if isinstance(error, TimeoutError) else error.errno or 0
        reason = f", errno={number} ({os.strerror(number)})"
    raise RuntimeError(f"ReadMessageHeader(type) failed: expected 1 byte(s), received 0{reason}")


@dataclass
class Request:
    """One work request: local pieces that land next to each other."""

    memory_id: int
    offset: int
    pieces: list[tuple[int, int]]
    """(address, length) of each local piece."""
    length: int = 0
    """Bytes of all pieces."""
    inside: bool = True
    """Whether every local piece is inside its region."""


def cut(connection: socket.socket) -> None:
    """Wake whoever waits on a socket, here and there."""
    with contextlib.suppress(OSError):  # its peer was first
        connection.shutdown(socket.SHUT_RDWR)


def end(thread: threading.Thread) -> None:
    """Wait for a thread's end, bounded: the collector may close an engine under a lock that it needs."""
    if thread is not threading.current_thread():
        thread.join(5)


class Lane(threading.Thread):
    """One queue pair: sends in order, and after the first error never again."""

    def __init__(self, peer: str, qp: int, connection: socket.socket, completions: Completions) -> None:
        super().__init__(name=f"mori-double-lane-{peer}-{qp}", daemon=True)
        self.jobs: SimpleQueue[tuple[Flight, Request] | None] = SimpleQueue()
        self.connection = connection
        self._place = (peer, qp)
        self._completions = completions
        self._broken = False
        connection.settimeout(None)
        self.start()

    def run(self) -> None:
        while (job := self.jobs.get()) is not None:
            flight, request = job
            error = FLUSHED if self._broken else self._send(request)
            self._broken = error is not None
            self._completions.put((flight, error))

    def _send(self, request: Request) -> str | None:
        if faults.outcomes and (wanted := faults.outcomes.popleft()):
            return wanted
        if not request.inside:
            return LOCAL_PROTECTION
        answer = b""
        if self._place not in faults.cut_lanes:
            header = HEADER.pack(WRITE, request.memory_id, request.offset, request.length)
            try:
                self.connection.sendall(header + b"".join(ctypes.string_at(*p) for p in request.pieces))
                answer = self.connection.recv(1)
            except OSError:
                answer = b""
        if not answer:
            return RETRY_EXCEEDED
        return None if answer == WRITTEN else REMOTE_ACCESS


class Owner:
    """The far side: answers for the regions of one engine until it is closed.

    ``find`` returns (address, size) of a region by its id, or None.
    """

    def __init__(self, host: str, port: int, find: Callable[[int], tuple[int, int] | None]) -> None:
        self._find = find
        self._listener = socket.create_server((host, port))
        self.port: int = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(
            target=target, args=args, name=f"mori-double-owner-{self.port}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            self._connections.append(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                while len(header := stream.read(HEADER.size)) == HEADER.size:
                    wanted, memory_id, offset, length = HEADER.unpack(header)
                    address, size = self._find(memory_id) or (0, 0)
                    if wanted == ASK:
                        connection.sendall(size.to_bytes(8, "big"))
                        continue
                    body = stream.read(length)
                    fits = address and offset + length <= size
                    if fits and len(body) == length:
                        ctypes.memmove(address + offset, body, length)
                    connection.sendall(WRITTEN if fits else REFUSED)
            except OSError:
                return  # the peer is gone

    def close(self) -> None:
        cut(self._listener)
        end(self._threads[0])  # then there is no connection that the next line does not know
        for connection in self._connections:
            cut(connection)
        for thread in self._threads[1:]:
            end(thread)
        self._listener.close()
