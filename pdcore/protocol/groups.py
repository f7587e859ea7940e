"""The prefill ranks that a room of decode needs, and where they are looked for. Values only."""

from __future__ import annotations

import attrs

from pdcore.model import PeerIdentity, RoomId
from pdcore.pairing.topology import DPChoice

__all__ = ["GroupKey", "Member"]


@attrs.frozen
class GroupKey:
    """A DP replica of the prefill side registered at ``bootstrap``; ``room`` where that must be asked for."""

    bootstrap: str
    choice: int | DPChoice
    room: RoomId | None = None

    def __str__(self) -> str:
        if isinstance(self.choice, DPChoice):
            return f"the prefill DP rank of room {self.room} of {self.bootstrap}"
        return f"prefill DP rank {self.choice} of {self.bootstrap}"

    def __hash__(self) -> int:
        return hash((self.bootstrap, self.room))  # an Enum's is slow, and of choices there are few


@attrs.frozen
class Member:
    """One prefill rank: who, and its unique rank."""

    identity: PeerIdentity
    rank: int
