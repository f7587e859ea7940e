"""A batch under way: the handles that NIXL was given for it, and what becomes of them."""

from __future__ import annotations

import threading

from pd_nixl.library import Agent, Handle, Library
from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Deadline
from pdcore.outcome import Quiescence, Transfer, TransferState

__all__ = ["NixlTransfer", "closed", "failure"]

SPINS = 64
"""Looks at a transfer without a pause: most tiny ones end within."""
PAUSE = 0.0001
"""Seconds between two later looks; NIXL tells nobody when a transfer ends."""


class NixlTransfer(Transfer):
    """The posted handles of one batch to the agent ``name``. The lock guards ``_open``.

    A handle is released once, when it has settled: releasing it earlier would not stop its bytes.
    """

    def __init__(self, library: Library, agent: Agent, name: str, handles: list[Handle]) -> None:
        self.name = name
        self._library = library
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

    def give_up(self) -> None:
        """End it because the engine is closed: the agent takes the bytes with it."""
        with self._lock:
            for handle in self._open:
                self.error = closed(self.name)
                handle.release()
            self._open, self._agent = [], None

    def _settled(self, handle: Handle) -> bool:
        try:
            if self._agent is not None and self._agent.check_xfer_state(handle) != "DONE":
                return False
        except self._library.transport_errors as error:
            self.error = failure(self._library, self.name, error)
        handle.release()
        return True


def failure(library: Library, name: str, error: Exception) -> KVTransferError:
    """Return what an exception of NIXL means for a write to the agent ``name``."""
    return KVTransferError(
        FailureCode.PEER_LOST if isinstance(error, library.disconnect_errors) else FailureCode.ENGINE,
        f"NIXL failed to write to agent {name[:8]}",
        f"{type(error).__name__}: {error}",
        "send the request again, to another worker if this one is gone",
    )


def closed(name: str) -> KVTransferError:
    """Return what ends a write to the agent ``name`` when its engine is closed."""
    happened = f"a write to agent {name[:8]} ended with its engine"
    return KVTransferError(FailureCode.ENGINE, happened, "this engine was closed", "send before closing")
