"""Pieces of a shipment: what is left to go out, and what the engine has."""

from __future__ import annotations

import time

import attrs

from pdcore.contract.regions import WriteBatch
from pdcore.plan import Slicer
from pdcore.prefill.lanes.delivery import Delivery
from pdcore.prefill.lanes.engine_transfer import GuardedTransfer
from pdcore.prefill.lanes.slots import PeerSlots
from pdcore.prefill.link import PeerLink

__all__ = ["FilledSlot", "Flight", "Part"]


@attrs.frozen(eq=False)
class Part:
    """What is left of some deliveries, or of ``packed`` alone, whose bytes go through slots."""

    rest: Slicer
    packed: Delivery | None = None


@attrs.frozen(eq=False)
class FilledSlot:
    """A piece of a delivery that goes packed, in one of the pair's ``slots``."""

    slots: PeerSlots
    slot: int
    delivery: Delivery
    piece: WriteBatch


class Flight:
    """A piece that the engine has, and what it took of the peer's budget: given back once.

    ``paced``: more pieces follow, so that this one is as large as the pace says. ``filled``: it is packed.
    """

    transfer: GuardedTransfer

    def __init__(
        self, link: PeerLink, entries: int, *, paced: bool = False, filled: FilledSlot | None = None
    ) -> None:
        self.paced, self.filled = paced, filled
        self.at = time.monotonic()
        self._link, self._entries = link, entries

    def give_back(self) -> None:
        """Return it: the piece has ended, or nobody will ever tell."""
        entries, self._entries = self._entries, 0
        if entries:
            self._link.budget.give(entries)

    def believe(self) -> None:
        """No byte of it can land any more, after it was given up: so its slot may be used."""
        self.give_back()
        if self.filled is not None:
            self.filled.slots.believe(self.filled.slot)
