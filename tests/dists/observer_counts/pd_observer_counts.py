"""An observer that keeps whose heartbeats were heard, and all events."""

from __future__ import annotations

import threading

from pdcore.contract.hookspecs import hookimpl
from pdcore.events import Event
from pdcore.model import PeerIdentity, Role

events: list[Event] = []
heard: dict[Role, PeerIdentity] = {}
both = threading.Event()


@hookimpl
def pd_heartbeat_success(peer: PeerIdentity) -> None:
    heard[peer.role] = peer
    if len(heard) == len(Role):
        both.set()


@hookimpl
def pd_event(event: Event) -> None:
    events.append(event)
