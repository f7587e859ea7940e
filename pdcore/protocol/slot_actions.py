"""What shall be done with slots of staging rings, among a side's actions."""

from __future__ import annotations

import attrs

from pdcore.model import Generation, PeerIdentity
from pdcore.wire import Packed, Route

__all__ = ["FreeSlot", "Unpack"]


@attrs.frozen
class FreeSlot:
    """A slot of a peer may be written to again: its use ``number`` is over."""

    route: Route
    identity: PeerIdentity
    slot: int
    number: int


@attrs.frozen(eq=False)
class Unpack:
    """Put what lies in a slot where it belongs; answered by ``BytesUnpacked``."""

    generation: Generation
    identity: PeerIdentity
    ring: int
    packed: Packed
