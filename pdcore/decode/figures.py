"""What the decode side adds to a manager's figures."""

from __future__ import annotations

from collections import Counter

import attrs

from pdcore.decode.sources import Sources
from pdcore.events import Gauges, PeerState
from pdcore.host.address import parse_address

__all__ = ["with_decode"]


def with_decode(gauges: Gauges, sources: Sources) -> Gauges:
    """Return the figures with those of the prefill ranks."""
    known = sources.all()
    peers = Counter(PeerState.PAIRED if source.ready else PeerState.PAIRING for source in known)
    peers[PeerState.LOST] = sources.lost
    return attrs.evolve(
        gauges,
        peers=peers,
        control_ports=frozenset(parse_address(source.identity.address).port for source in known),
        bootstrap_ports=frozenset(parse_address(address).port for address in sources.bootstraps()),
    )
