"""The writer's look at a peer's gate: one small read that tells the peer's life, identity and consent."""

from __future__ import annotations

import errno

from pdcore.errors import FailureCode, KVTransferError
from pdcore.local import kernel
from pdcore.local.address import PERMISSION_FIX, LocalAddress
from pdcore.local.page import CELL, NONCE, UNDER_WAY

__all__ = ["PeerGate", "denied", "lost"]


class PeerGate:
    """Where the writer's ticket lies in a peer's gate. Shared by the threads that write to the peer.

    The ticket is the key of the peer's registration and the nonce of the writer.
    """

    def __init__(self, target: LocalAddress, ticket: bytes) -> None:
        self._target = target
        self._ticket = ticket
        self._spare: list[tuple[int, kernel.Peek]] = []
        self._cell = 0
        self.refused = False

    def require(self) -> None:
        """Look at the gate; return if the writer is admitted now.

        Raises:
            KVTransferError: ENGINE if it is not, PEER_LOST if the peer is gone.
        """
        try:
            if not self._same_cell() and not self._search():
                raise KVTransferError(
                    FailureCode.ENGINE,
                    f"{self._target.process} does not accept writes from this engine",
                    "it never admitted this engine, has revoked it, or has registered other memory since",
                    "pair again before sending",
                )
        except PermissionError as error:
            raise denied(self._target, error) from error
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.EFAULT):
                raise
            raise lost(self._target) from error
        self.refused = False

    def _same_cell(self) -> bool:
        if not self._cell:
            return False
        # A Peek is for one thread at a time; taking from and giving to a list are atomic.
        cell, peek = self._spare.pop() if self._spare else (0, None)
        if peek is None or cell != self._cell:
            cell = self._cell
            peek = kernel.Peek(self._target.pid, cell, CELL)
        held = peek() == self._ticket
        self._spare.append((cell, peek))
        return held

    def _search(self) -> bool:
        page = kernel.read_memory(self._target.pid, self._target.page, UNDER_WAY)
        if page[:NONCE] != self._target.nonce:
            raise lost(self._target)
        at = page.find(self._ticket, CELL)
        self.refused = at < 0
        self._cell = 0 if self.refused else self._target.page + at
        return not self.refused


def lost(target: LocalAddress) -> KVTransferError:
    """Return the error that a peer's process or engine is gone."""
    there_is = "its process has ended" if target.exited() else "its process lives, its engine was closed"
    return KVTransferError(
        FailureCode.PEER_LOST,
        f"the peer is gone: {target.process}",
        there_is,
        "start the peer again; it pairs by itself under a new endpoint",
    )


def denied(target: LocalAddress, error: OSError) -> KVTransferError:
    """Return the error that the kernel forbids to touch a peer."""
    return KVTransferError(
        FailureCode.ENGINE,
        f"the memory of {target.process} may no longer be touched",
        f"{error.strerror}",
        PERMISSION_FIX,
    )
