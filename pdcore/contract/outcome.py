"""How one write ends: its state, its error, and whether bytes may still land."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum

from pdcore.errors import KVTransferError
from pdcore.model import Deadline

__all__ = ["Finished", "Quiescence", "Transfer", "TransferState"]


class TransferState(Enum):
    """Where a transfer stands. FAILED says nothing about bytes: see :class:`Quiescence`."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"


class Quiescence(Enum):
    """Whether bytes of a transfer may still land at the far side.

    DRAINED is a promise: none can land any more, not even what a stopped peer has not read yet. It is never
    said of a PENDING transfer, always of a DONE one, and never taken back. A transfer that FAILED may be
    UNKNOWN or IN_FLIGHT at first and DRAINED later: who holds its pages asks again (``poll``, then
    ``quiescence``), and an engine that learns more, such as that the peer's process is gone, says so then.
    One that never learns it stays UNKNOWN, and its pages are safe once the engine is closed.
    """

    DRAINED = "drained"
    IN_FLIGHT = "in_flight"
    UNKNOWN = "unknown"


class Transfer(ABC):
    """One write under way. ``error`` is set once it FAILED."""

    error: KVTransferError | None = None

    @abstractmethod
    def poll(self) -> TransferState:
        """Return the state now; never blocks."""

    @abstractmethod
    def wait(self, deadline: Deadline) -> TransferState:
        """Wait until the transfer ended or the deadline passed (then PENDING); never raises."""

    @property
    @abstractmethod
    def quiescence(self) -> Quiescence:
        """Whether bytes may still land; DONE is always DRAINED."""


class Finished(Transfer):
    """A transfer that ended before ``write`` returned, as synchronous engines report it."""

    def __init__(
        self, error: KVTransferError | None = None, quiescence: Quiescence = Quiescence.DRAINED
    ) -> None:
        self.error = error
        self._quiescence = quiescence

    def poll(self) -> TransferState:
        return TransferState.FAILED if self.error else TransferState.DONE

    def wait(self, deadline: Deadline) -> TransferState:
        return self.poll()

    @property
    def quiescence(self) -> Quiescence:
        return self._quiescence
