"""What a manager holds at one moment, as figures: an operator looks at them without touching a request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import Enum

import attrs

from pdcore.events.kinds import Event, Node
from pdcore.model import KVPoll

__all__ = ["Gauges", "PeerState", "Watcher"]


class PeerState(Enum):
    """How a manager stands with a peer. A lost one counts while something that it took is held yet."""

    PAIRING = "pairing"
    PAIRED = "paired"
    LOST = "lost"


@attrs.frozen
class Gauges:
    """The figures of one manager.

    Attributes:
        serving: whether it takes rooms: it is not closed, and its control thread runs.
        quiet: seconds since its control thread last looked at deadlines and heartbeats; it does so every
            0.1 s, so that more than a few seconds mean a thread that is stuck.
        rooms: rooms that are not cleared, by state.
        unsafe_rooms: rooms that have ended, cleared ones as well, but whose memory may not be reused yet.
        unsafe_pages: the KV pages of this side that those hold.
        forsaken: lost peers that were taken for silent, unproven, after ``quarantine.grace``.
        registered: whether the bootstrap service knows it and its lease holds; None: decode, which registers
            nowhere.
        peers: peers by how it stands with them.
        parked: requests of decode that came before prefill opened their room.
        quarantined: transfers that have failed, and whose bytes may still land.
        rings_in_doubt: staging rings that lost peers may still write to.
        control_ports: TCP ports of its control channel and of the peers that it dials.
        bootstrap_ports: TCP ports of the bootstrap services that it asks.
    """

    node: Node
    serving: bool
    quiet: float
    rooms: Mapping[KVPoll, int]
    unsafe_rooms: int
    unsafe_pages: int
    forsaken: int
    registered: bool | None = None
    peers: Mapping[PeerState, int] = attrs.field(factory=dict)
    parked: int = 0
    quarantined: int = 0
    rings_in_doubt: int = 0
    control_ports: frozenset[int] = frozenset()
    bootstrap_ports: frozenset[int] = frozenset()


class Watcher(ABC):
    """A subscriber that also looks at the managers' figures, when it is asked for them."""

    @abstractmethod
    def __call__(self, event: Event) -> None:
        """Take an event."""

    @abstractmethod
    def watch(self, node: Node, read: Callable[[], Gauges]) -> None:
        """From now on ``read`` returns the figures of a manager; it is cheap, for any thread."""

    @abstractmethod
    def unwatch(self, node: Node) -> None:
        """The manager is closed, or its events are not for this subscriber any more."""
