"""What a decode rank that wants to pair means to this prefill rank, or why it may not."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from pdcore.errors import FailureCode
from pdcore.model import AuxTransport, Incarnation
from pdcore.pairing.description import PeerDescription
from pdcore.pairing.misfits import chosen_aux_transport, pairing_misfits
from pdcore.pairing.topology import map_ranks, served_ranks
from pdcore.protocol.peer import Facts
from pdcore.wire import Failure, PairReply, limit_of

__all__ = ["facts_of", "introduction"]

MOST_PEERS = 4_096
"""Each has a lane of its own: a thread."""


def introduction(
    ours: PeerDescription, there: PeerDescription, forsaken: AbstractSet[Incarnation], known: int
) -> Facts | PairReply:
    """Return what a rank means, or the answer that refuses it: it does not fit, was taken for dead
    (``forsaken``), or so many are ``known`` that there is no place."""
    misfits = pairing_misfits(ours, there)
    if misfits:
        return PairReply(ours, misfits)
    if there.incarnation in forsaken:
        return PairReply(ours, (), FORSAKEN)
    if known >= MOST_PEERS:
        return PairReply(ours, (), _too_many())
    return facts_of(ours, there)


def facts_of(ours: PeerDescription, there: PeerDescription) -> Facts:
    """Return who asks for rooms beside it, and what of a room goes to it from here, and how."""
    groups, units = (ours.topology, there.topology), there.layout.units
    sharded = any(component.sharded for component in there.state)
    mapping = map_ranks(*groups, *units, sharded_state=sharded)
    rank = ours.topology.unique_rank
    carries_aux = rank == mapping.aux_rank
    by_message = chosen_aux_transport(ours, there) is AuxTransport.TCP
    return Facts(
        asking=tuple(served_ranks(*groups, *units, sharded_state=sharded)),
        dummy=rank not in mapping.prefill_ranks,
        carries_aux=carries_aux,
        row_by_message=carries_aux and by_message and ours.aux is not None,
        limit=limit_of(ours.max_message_bytes, there),
    )


FORSAKEN = Failure(
    FailureCode.ENGINE,
    "prefill takes this decode process for dead",
    "it was lost for longer than quarantine.grace while bytes were on their way to it",
    "start this decode worker again, or raise quarantine.grace on prefill",
)


def _too_many() -> Failure:
    return Failure(
        FailureCode.ENGINE,
        "prefill takes no more decode workers",
        f"{MOST_PEERS} are paired or pairing",
        "look who they are, or start more prefill workers",
    )
