"""What a receiver needs of its manager."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pdcore.bootstrap import ReplicaQuery
from pdcore.config.records import Config
from pdcore.decode.group import PrefillGroup
from pdcore.decode.source import PrefillSource
from pdcore.events import Events
from pdcore.memory.pools import Pools
from pdcore.model import PeerIdentity, RoomId
from pdcore.rooms.claims import Claims
from pdcore.rooms.status import RoomTable
from pdcore.wire import Abort, Message, RequestMetadata

if TYPE_CHECKING:
    from pdcore.decode.receiver import KVReceiver

__all__ = ["ReceiverHost"]


class ReceiverHost(Protocol):
    """What a receiver needs of its manager."""

    claims: Claims
    config: Config
    events: Events
    pools: Pools
    rooms: RoomTable

    def group(self, bootstrap: str, query: ReplicaQuery) -> PrefillGroup:
        """Return the prefill ranks of a DP replica that this rank needs; pairing begins if need be."""

    def default_group(self, bootstrap: str, room: RoomId) -> PrefillGroup | None:
        """Return the group that a room has unless ``init`` chooses another; None while the manager closes."""

    def request(self, source: PrefillSource, wanted: RequestMetadata) -> None:
        """Post a request to a paired prefill rank."""

    def abandon(self, source: PrefillSource, abort: Abort) -> None:
        """Tell prefill that a request was given up."""

    def say(self, source: PrefillSource, message: Message) -> None:
        """Tell a prefill rank something, unless it is lost by then."""

    def trouble(self, bootstrap: str) -> str:
        """Return how often in a row a bootstrap service was not reached and why; "" if it was."""

    def reaches(self, source: PrefillSource) -> bool:
        """Whether that prefill process is paired, perhaps anew."""

    def unproven(self, writer: PeerIdentity) -> str:
        """Why a prefill process may still write to rooms that have ended."""

    def forget(self, receiver: KVReceiver) -> None:
        """Free the id of a room that was cleared."""
