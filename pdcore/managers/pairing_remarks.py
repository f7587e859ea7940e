"""What is said of two ranks that have paired: who they are, and what differs all the same."""

from __future__ import annotations

import logging

from pdcore.events import Events, PeerPaired
from pdcore.model import PeerIdentity, Role
from pdcore.pairing.description import PeerDescription

__all__ = ["announce_pairing", "engine_remark", "pairing_remarks"]

_log = logging.getLogger("pdcore.pairing")


def announce_pairing(
    events: Events, peer: PeerIdentity, prefill: PeerDescription, decode: PeerDescription
) -> None:
    """Log that two ranks have paired, of which ``peer`` is the other one, and tell who listens."""
    there = prefill if peer.role is Role.PREFILL else decode
    remarks = pairing_remarks(prefill, decode)
    _log.info("paired with %s (engine %s)", peer, there.engine_version or "of unknown version")
    for remark in remarks:
        _log.warning("paired with %s, although %s", peer, remark)
    if events.on:
        events.emit(PeerPaired(events.node, peer, there.engine_version, remarks))


def engine_remark(prefill: PeerDescription, decode: PeerDescription) -> str:
    """Return that two engines are not of one version, or ""."""
    if prefill.engine_version == decode.engine_version:
        return ""
    ours, theirs = (side.engine_version or "an unknown version" for side in (prefill, decode))
    return f"the engines' versions differ: prefill has {ours}, decode has {theirs}"


def pairing_remarks(prefill: PeerDescription, decode: PeerDescription) -> tuple[str, ...]:
    """Return what who operates both should know: both sides say the same."""
    remarks = [engine_remark(prefill, decode)]
    ours, theirs = prefill.layout.fingerprint, decode.layout.fingerprint
    if (ours is None) != (theirs is None):
        side, other = ("prefill", "decode") if theirs is None else ("decode", "prefill")
        remarks.append(
            f"only {side} has a fingerprint ({ours or theirs}): whether {other} serves the same model is not "
            "checked"
        )
    return tuple(filter(None, remarks))
