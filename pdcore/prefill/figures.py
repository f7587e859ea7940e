"""What the prefill side adds to a manager's figures."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from pdcore.events import Gauges, PeerState
from pdcore.host.address import parse_address
from pdcore.prefill.registration import Registration
from pdcore.rooms.quarantine import Quarantine

__all__ = ["with_prefill"]


def with_prefill(
    gauges: Gauges,
    peers: Mapping[PeerState, int],
    parked: int,
    quarantine: Quarantine,
    address: str,
    registration: Registration,
) -> Gauges:
    """Return the figures with those of the decode ranks, of what is parked and of what is in quarantine."""
    return attrs.evolve(
        gauges,
        registered=registration.registered,
        peers=peers,
        parked=parked,
        quarantined=len(quarantine),
        control_ports=frozenset({parse_address(address).port}),
        bootstrap_ports=frozenset({parse_address(registration.bootstrap).port}),
    )
