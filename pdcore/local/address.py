"""What a peer must know to reach an engine, and the reasons why it may not be reachable."""

from __future__ import annotations

import errno
import os

import attrs
import msgspec

from pdcore.errors import EngineError
from pdcore.host.process import ProcessIdentity, start_time
from pdcore.local import kernel
from pdcore.local.page import NONCE, Page

__all__ = ["PERMISSION_FIX", "LocalAddress"]

PERMISSION_FIX = (
    "run both processes as the same user; if they are, `sysctl kernel.yama.ptrace_scope=0`, or give them "
    "CAP_SYS_PTRACE (in a container: `docker run --cap-add SYS_PTRACE`)"
)


@attrs.frozen
class LocalAddress:
    """One engine: the process it lives in, its nonce, and where its page is."""

    process: ProcessIdentity
    nonce: bytes = attrs.field(repr=lambda nonce: nonce.hex()[:8])
    page: int = attrs.field(repr=hex)

    @classmethod
    def of(cls, page: Page) -> LocalAddress:
        """Return the address of an engine of this process."""
        return cls(ProcessIdentity.here(), page.nonce, page.address)

    def encode(self) -> bytes:
        """Return the endpoint that peers are given."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, endpoint: bytes) -> LocalAddress:
        """Return the address in a peer's endpoint.

        Raises:
            EngineError: it was not written by an engine of this backend.
        """
        try:
            return _read_address(endpoint)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise EngineError(
                "a peer's endpoint is not one of the backend 'local'",
                f"{len(endpoint)} bytes: {error}",
                "choose the same backend on both sides",
            ) from error

    @property
    def pid(self) -> int:
        """The number of its process."""
        return self.process.pid

    def exited(self) -> bool:
        """Whether the process is gone from the process table, its pid free or used by another."""
        return start_time(self.pid) != self.process.started

    def require_reachable(self) -> None:
        """Look whether the engine is there and may be touched.

        Raises:
            EngineError: another host or pid namespace, not permitted, not alive, or not the one meant.
        """
        self._require_same_host()
        if self.exited():
            raise EngineError(
                f"the peer is gone: {self.process} is not the one that gave its endpoint",
                f"started at tick {start_time(self.pid) or 'none'}, the endpoint says {self.process.started}",
                "start the peer again and pair with its new endpoint",
            )
        try:
            nonce = kernel.read_memory(self.pid, self.page, NONCE)
        except PermissionError as error:
            raise EngineError(
                f"the memory of {self.process} may not be touched",
                f"{error.strerror}; this process runs as user {os.geteuid()}, "
                f"yama ptrace_scope is {kernel.yama_scope()}",
                PERMISSION_FIX,
            ) from error
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EFAULT):
                raise
            nonce = b""
        if nonce != self.nonce:
            raise EngineError(
                f"the engine in {self.process} is gone",
                f"its page at {self.page:#x} holds {nonce.hex() or 'nothing'}, not {self.nonce.hex()}",
                "start the peer's engine again and pair with its new endpoint",
            )

    def _require_same_host(self) -> None:
        here, there = ProcessIdentity.here(), self.process
        if there.boot != here.boot:
            raise EngineError(
                "the backend 'local' cannot reach another host",
                f"the peer runs on boot {there.boot}, this process on {here.boot}",
                "run both on one host, or choose a backend with a network: `pdcore backends`",
            )
        if there.pids != here.pids:
            raise EngineError(
                "the backend 'local' cannot reach another pid namespace",
                f"the peer's pids are of namespace {there.pids}, this process's of {here.pids}",
                "let both containers share one: `docker run --pid=container:NAME` (or --pid=host)",
            )


# Made at import: msgspec 0.22 crashes when two threads are the first to decode a type.
_read_address = msgspec.msgpack.Decoder(LocalAddress).decode
