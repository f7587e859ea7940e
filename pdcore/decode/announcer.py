"""Who tells listeners to events how a pairing with a prefill rank went."""

from __future__ import annotations

import attrs

from pdcore.decode.source import PrefillSource
from pdcore.errors import KVTransferError
from pdcore.events import Events, PairingFailed
from pdcore.managers.pairing_remarks import announce_pairing
from pdcore.pairing.description import PeerDescription

__all__ = ["Announcer"]


@attrs.frozen
class Announcer:
    """The first that hears of a pairing: it tells who listens to events."""

    _events: Events
    _source: PrefillSource
    _ours: PeerDescription

    def paired(self) -> None:
        """It is there."""
        there = self._source.description
        assert there is not None  # it is paired
        announce_pairing(self._events, self._source.identity, there, self._ours)

    def unpaired(self, failure: KVTransferError) -> bool:
        """It failed."""
        if self._events.on:
            peer = self._source.identity
            self._events.emit(PairingFailed(self._events.node, peer, failure.code, str(failure)))
        return True
