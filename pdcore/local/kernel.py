"""The system calls under ``local``, typed: reading and writing another process's memory.

All functions raise OSError as the kernel reports it: ProcessLookupError when the process is gone,
PermissionError when it may not be touched, EFAULT when an address is not mapped there.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Protocol, cast

__all__ = [
    "IOV_MAX",
    "Peek",
    "allow_peers",
    "can_trace_any",
    "read_memory",
    "self_test",
    "write_memory",
    "yama_scope",
]

IOV_MAX = 1024
"""Entries per call and side (``UIO_MAXIOV``)."""

PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = -1
CAP_SYS_PTRACE = 19


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _VectorCall(Protocol):
    def __call__(self, pid: int, local: int, locals_: int, remote: int, remotes: int, flags: int, /) -> int:
        """Return the bytes moved, or -1 with errno set."""


@functools.cache
def _bind(name: str) -> _VectorCall:
    call = getattr(ctypes.CDLL(None, use_errno=True), name)
    vectors, count = ctypes.c_void_p, ctypes.c_ulong
    call.argtypes = (ctypes.c_int, vectors, count, vectors, count, count)
    call.restype = ctypes.c_ssize_t
    return cast("_VectorCall", call)


def _failed(name: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{name}: {os.strerror(number)}")


def write_memory(pid: int, source: int, target: int, count: int) -> int:
    """Copy ``count`` entries to process ``pid``; return the bytes moved, which may be fewer than asked.

    ``source`` and ``target`` are the addresses of ``struct iovec`` arrays of that many entries
    (at most 1024), in this process. The interpreter is free to run other threads meanwhile.
    """
    moved = _bind("process_vm_writev")(pid, source, count, target, count, 0)
    if moved < 0:
        raise _failed("process_vm_writev")
    return moved


class Peek:
    """A prepared read of ``length`` bytes at ``address`` of process ``pid``. For one thread at a time."""

    def __init__(self, pid: int, address: int, length: int) -> None:
        self._pid = pid
        self._length = length
        self._buffer = ctypes.create_string_buffer(length)
        self._vectors = (_IoVector * 2)(
            _IoVector(ctypes.addressof(self._buffer), length), _IoVector(address, length)
        )
        self._local = ctypes.addressof(self._vectors)
        self._remote = self._local + ctypes.sizeof(_IoVector)
        self._call = _bind("process_vm_readv")

    def __call__(self) -> bytes:
        """Return the bytes as they are now."""
        moved = self._call(self._pid, self._local, 1, self._remote, 1, 0)
        if moved < 0:
            raise _failed("process_vm_readv")
        return self._buffer.raw[:moved]


def read_memory(pid: int, address: int, length: int) -> bytes:
    """Return up to ``length`` bytes at ``address`` of process ``pid``: fewer where its mapping ends."""
    return Peek(pid, address, length)()


def self_test() -> None:
    """Write one byte to this process through the kernel.

    Raises:
        OSError: the call is missing or forbidden here.
    """
    if not hasattr(ctypes.CDLL(None), "process_vm_writev"):
        raise OSError("the C library has no process_vm_writev")
    os.close(os.pidfd_open(os.getpid()))
    source, target = ctypes.create_string_buffer(b"\x5a", 1), ctypes.create_string_buffer(1)
    ends = (_IoVector * 2)(_IoVector(ctypes.addressof(source), 1), _IoVector(ctypes.addressof(target), 1))
    first = ctypes.addressof(ends)
    write_memory(os.getpid(), first, first + ctypes.sizeof(_IoVector), 1)
    if target.raw != source.raw:
        raise OSError("process_vm_writev returned without having written")


def allow_peers() -> None:
    """Let processes of the same user reach this one where Yama forbids it by default (scope 1).

    MPI libraries do the same for their shared-memory transports. No effect where Yama is not built in.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = (ctypes.c_int, ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)


def yama_scope() -> int:
    """Return the ``ptrace_scope`` of this machine, 0 (no restriction) where there is none."""
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except FileNotFoundError:
        return 0


def can_trace_any() -> bool:
    """Whether this process has CAP_SYS_PTRACE."""
    lines = Path("/proc/self/status").read_text().splitlines()
    effective = next(line.split()[1] for line in lines if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> CAP_SYS_PTRACE & 1)
