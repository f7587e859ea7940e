"""What the decode side adds to a manager's figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import attrs

from pdcore.events import Gauges, PeerState
from pdcore.host.address import parse_address
from pdcore.protocol.peer import RemoteRank

__all__ = ["with_decode"]


def with_decode(
    gauges: Gauges, known: Iterable[RemoteRank], lost: int, bootstraps: Iterable[str], rings: int
) -> Gauges:
    """Return the figures with those of the prefill ranks; ``lost`` are not known to be silent, and so many
    ``rings`` wait for that."""
    known = list(known)
    peers = Counter(PeerState.PAIRED if peer.ready else PeerState.PAIRING for peer in known)
    peers[PeerState.LOST] = lost
    return attrs.evolve(
        gauges,
        peers=peers,
        rings_in_doubt=rings,
        control_ports=frozenset(parse_address(peer.identity.address).port for peer in known),
        bootstrap_ports=frozenset(parse_address(address).port for address in bootstraps),
    )
