"""A batch under way: the handles that NIXL was given for it, and what becomes of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from pd_nixl.library import Agent, Handle, Library
from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Deadline

__all__ = ["NixlTransfer"]

SPINS = 64
"""Looks at a transfer without a pause: most tiny ones end within."""
PAUSE = 0.0001
"""Seconds between two later looks; NIXL tells nobody when a transfer ends."""


class NixlTransfer(Transfer):
    """One batch to the agent ``name``. The lock guards ``_open``, once all has been posted.

    A handle is released once, when it has settled: releasing it earlier would not stop its bytes.
    """

    def __init__(self, library: Library, agent: Agent | None, name: str) -> None:
        self._library = library
        self._agent = agent
        self.name = name
        self._posted = False
        self._open: list[Handle] = []
        self._given_up = False
        self._lock = threading.Lock()

    def post(self, agent: Agent, requests: Iterator[Handle]) -> None:
        """Make the requests and start each. NIXL's refusal ends the transfer, with those before it."""
        try:
            for handle in requests:
                self._open.append(handle)
                agent.transfer(handle)
        except self._library.transport_errors as error:
            self.error = self.error or _failure(self._library, self.name, error)
        finally:
            self._posted = True

    def poll(self) -> TransferState:
        with self._lock:
            if self._posted:
                self._open = [handle for handle in self._open if not self._settled(handle)]
            if self.quiescence is Quiescence.IN_FLIGHT:
                return TransferState.PENDING
            self._agent = None
        return TransferState.FAILED if self.error else TransferState.DONE

    def wait(self, deadline: Deadline) -> TransferState:
        looks = 0
        while (state := self.poll()) is TransferState.PENDING and not deadline.expired:
            looks += 1
            time.sleep(PAUSE if looks > SPINS else 0)
        return state

    @property
    def quiescence(self) -> Quiescence:
        if self._given_up:
            return Quiescence.UNKNOWN
        return Quiescence.IN_FLIGHT if self._open or not self._posted else Quiescence.DRAINED

    def give_up(self) -> None:
        """End it because the engine is closed. No byte leaves any more, and what a stopped peer's sockets
        hold may still land."""
        with self._lock:
            if self.quiescence is Quiescence.IN_FLIGHT:
                self._given_up = True
                happened = f"a write to agent {self.name[:8]} ended with its engine"
                there_is, to_do = "this engine was closed", "send before closing"
                self.error = KVTransferError(FailureCode.ENGINE, happened, there_is, to_do)
            for handle in self._open:
                handle.release()
            self._posted, self._open, self._agent = True, [], None

    def _settled(self, handle: Handle) -> bool:
        try:
            if self._agent is not None and self._agent.check_xfer_state(handle) != "DONE":
                return False
        except self._library.transport_errors as error:
            self.error = self.error or _failure(self._library, self.name, error)
        handle.release()
        return True


def _failure(library: Library, name: str, error: Exception) -> KVTransferError:
    lost = isinstance(error, library.errors["RemoteDisconnect"])
    return KVTransferError(
        FailureCode.PEER_LOST if lost else FailureCode.ENGINE,
        f"NIXL failed to write to agent {name[:8]}",
        f"{type(error).__name__}: {error}",
        "send the request again, to another worker if this one is gone",
    )
