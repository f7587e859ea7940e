"""What goes over a connection: a greeting, then parcels, each answered with one byte or a reason.

A parcel is a count, then region numbers, offsets and lengths (uint64 each), then the bytes of all entries.
"""

from __future__ import annotations

import ctypes
import socket
import struct

import numpy as np
import numpy.typing as npt

COUNT = struct.Struct("!Q")
TAKEN = b"\x01"
MOST_ENTRIES = 1 << 22
"""More than any plan has: a stranger's count is not allocated for."""
Table = npt.NDArray[np.uint64]
"""Shape (3, entries): the receiver's region, the offset within it, and the length, in bytes."""


class LostError(ConnectionError):
    """The other side is gone, or does not answer in time."""


def memory(address: int, length: int) -> memoryview:
    """The bytes at an address, writable."""
    return memoryview((ctypes.c_char * length).from_address(address)).cast("B")


def receive(link: socket.socket, into: memoryview) -> None:
    """Fill ``into``, or raise ``LostError``."""
    while into:
        try:
            count = link.recv_into(into)
        except OSError as error:
            raise LostError(str(error)) from error
        if not count:
            raise LostError("the connection was closed")
        into = into[count:]


def receive_bytes(link: socket.socket, count: int) -> bytes:
    """The next ``count`` bytes."""
    content = bytearray(count)
    receive(link, memoryview(content))
    return bytes(content)


def receive_text(link: socket.socket, limit: int = 1 << 16) -> bytes:
    """What ``send_text`` sent."""
    (count,) = COUNT.unpack(receive_bytes(link, COUNT.size))
    if count > limit:
        raise LostError(f"{count} bytes were announced where at most {limit} are sent")
    return receive_bytes(link, count)


def send(link: socket.socket, content: bytes | memoryview) -> None:
    """Hand all to the kernel, or raise ``LostError``."""
    try:
        link.sendall(content)
    except OSError as error:
        raise LostError(str(error)) from error


def send_text(link: socket.socket, content: bytes) -> None:
    """Send bytes behind their count."""
    send(link, COUNT.pack(len(content)) + content)


def send_table(link: socket.socket, table: Table) -> None:
    """Announce a parcel."""
    send(link, COUNT.pack(table.shape[1]) + table.astype(">u8").tobytes())


def receive_table(link: socket.socket) -> Table:
    """What ``send_table`` sent; raises ``LostError`` also where the peer has nothing more to send."""
    (count,) = COUNT.unpack(receive_bytes(link, COUNT.size))
    if count > MOST_ENTRIES:
        raise LostError(f"a parcel of {count} entries was announced")
    content = receive_bytes(link, 3 * 8 * count)
    return np.frombuffer(content, ">u8").astype(np.uint64).reshape(3, count)
