"""An observer that keeps whose heartbeats were heard."""

from __future__ import annotations

import threading

from pdcore.backend import PeerIdentity
from pdcore.hookspecs import hookimpl
from pdcore.model import Role

heard: dict[Role, PeerIdentity] = {}
both = threading.Event()


@hookimpl
def pd_heartbeat_success(peer: PeerIdentity) -> None:
    heard[peer.role] = peer
    if len(heard) == len(Role):
        both.set()
