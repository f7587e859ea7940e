"""What a role adds to a manager: the messages it handles, its peers and rooms, and how it leaves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from pdcore.events import Gauges
from pdcore.host.process import ProcessIdentity
from pdcore.model import Deadline, PeerIdentity
from pdcore.rooms.handle import RoomHandle
from pdcore.wire import Message, Route

__all__ = ["Duties"]


class Duties(ABC):
    """What a manager calls, on its control thread unless one says otherwise."""

    @abstractmethod
    def _on_message(self, route: Route, message: Message) -> None:
        """Handle one message of a peer."""

    @abstractmethod
    def _expire(self) -> None:
        """End what missed its deadline."""

    @abstractmethod
    def _lose(self, route: Route, why: str) -> None:
        """Forget a peer and fail exactly its rooms."""

    @abstractmethod
    def _figures(self, gauges: Gauges) -> Gauges:
        """Return them with those of this role."""

    def _problems(self) -> Sequence[str]:
        """Return what keeps this role from its work; from any thread, never waits."""
        return ()

    @abstractmethod
    def _peers(self) -> Mapping[Route, PeerIdentity]:
        """Return all peers by route."""

    @abstractmethod
    def _process_of(self, route: Route) -> ProcessIdentity | None:
        """Return the process of a paired peer, if it said which."""

    @abstractmethod
    def _end_rooms(self, deadline: Deadline) -> None:
        """Fail what has not ended and let the lanes end."""

    @abstractmethod
    def _all_drained(self, *, tell: bool) -> None:
        """The engine is closed: every page of this side is safe, and if ``tell``, of the peers too."""

    @abstractmethod
    def _handles(self) -> Sequence[RoomHandle]:
        """Return all rooms that are not cleared or not safe."""

    @abstractmethod
    def _forsaken(self) -> int:
        """Return how many lost peers were taken for silent, unproven."""

    @abstractmethod
    def _leave(self, deadline: Deadline) -> None:
        """Withdraw from the bootstrap service."""
