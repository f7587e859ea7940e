"""What a role adds to a manager: what it does from time to time, its figures, and how it leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pdcore.events import Gauges
from pdcore.model import Deadline
from pdcore.protocol.actions import Lost

__all__ = ["Duties"]


class Duties(ABC):
    """What a manager calls, on its control thread unless one says otherwise."""

    @abstractmethod
    def _expire(self) -> None:
        """Do what is due from time to time."""

    @abstractmethod
    def _part(self, lost: Lost) -> None:
        """Let go of a peer that is lost; from any thread, never waits."""

    @abstractmethod
    def _figures(self, gauges: Gauges) -> Gauges:
        """Return them with those of this role."""

    def _problems(self) -> Sequence[str]:
        """Return what keeps this role from its work; from any thread, never waits."""
        return ()

    @abstractmethod
    def _end_threads(self, deadline: Deadline) -> None:
        """Every room has ended: end the threads that this role has."""

    @abstractmethod
    def _forsaken(self) -> int:
        """Return how many lost peers were taken for silent, unproven."""

    @abstractmethod
    def _leave(self, deadline: Deadline) -> None:
        """Withdraw from the bootstrap service."""
