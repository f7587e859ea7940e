"""What the prefill side adds to a manager's figures."""

from __future__ import annotations

import attrs

from pdcore.events import Gauges
from pdcore.host.address import parse_address
from pdcore.prefill.early_requests import EarlyRequests
from pdcore.prefill.links import Links
from pdcore.prefill.registration import Registration
from pdcore.rooms.quarantine import Quarantine

__all__ = ["with_prefill"]


def with_prefill(
    gauges: Gauges,
    links: Links,
    parking: EarlyRequests,
    quarantine: Quarantine,
    address: str,
    registration: Registration,
) -> Gauges:
    """Return the figures with those of the decode ranks, of what is parked and of what is in quarantine."""
    return attrs.evolve(
        gauges,
        registered=registration.registered,
        peers=links.by_state(),
        parked=len(parking),
        quarantined=len(quarantine),
        control_ports=frozenset({parse_address(address).port}),
        bootstrap_ports=frozenset({parse_address(registration.bootstrap).port}),
    )
