"""What a room of decode waits for, and of whom, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdcore.decode.source import PrefillSource
from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import PeerIdentity
from pdcore.rooms.status import Awaited

__all__ = ["NO_INIT", "NO_METADATA", "not_paired_in_time", "of_bootstrap", "of_pairing", "of_prefill"]

NO_INIT = Awaited("decode's init(), which was not called", "call init() when a request arrives")
NO_METADATA = Awaited(
    "decode's send_metadata(), which was not called; prefill is paired",
    "look why decode has no pages for the request, or raise the deadline",
)


def of_bootstrap(group: str, bootstrap: str, trouble: str) -> Awaited:
    """Return that the ranks of a group are not known; ``trouble`` is why its service was not reached."""
    if trouble:
        return Awaited(
            f"the bootstrap service at {bootstrap}: {trouble}",
            "check the address, and that the prefill side's bootstrap service runs",
        )
    return Awaited(
        f"{group}, whose ranks have not all registered there",
        "look whether all prefill ranks of that replica run and register there",
    )


def of_pairing(members: Sequence[PrefillSource]) -> Awaited:
    """Return that some prefill ranks have not paired."""
    missing = [member for member in members if not member.ready]
    return Awaited(
        f"{', '.join(map(_name, missing[:4]))} of {len(members)}, which did not answer the request to pair",
        "look whether those workers run, can be reached at these addresses, and are not stuck",
    )


def of_prefill(
    senders: Sequence[PrefillSource], responded: set[PeerIdentity], standing: Mapping[PeerIdentity, str]
) -> Awaited:
    """Return that prefill ranks have not sent all; ``standing`` is what they said that they wait for."""
    missing = [sender for sender in senders if sender.identity not in responded]
    rows = [f"{_name(sender)}, which {_waits(standing.get(sender.identity))}" for sender in missing[:4]]
    return Awaited(
        "; ".join(rows) + (f"; and {len(missing) - 4} more" if len(missing) > 4 else ""),
        "look whether the request reached prefill with this room id, and why it is slow there; or raise the "
        "deadline",
    )


def not_paired_in_time(group: object, seconds: float) -> KVTransferError:
    """Return the failure of all who waited for a group; ``seconds`` is ``timeouts.pairing``."""
    return KVTransferError(
        FailureCode.DEADLINE,
        f"{group} did not pair in time",
        f"timeouts.pairing is {seconds:g} s",
        "look whether that prefill worker is stuck; raise timeouts.pairing if its engine is slow",
    )


def _waits(standing: str | None) -> str:
    return f"awaits {standing}" if standing else "has not said how the room stands there"


def _name(source: PrefillSource) -> str:
    return f"prefill rank {source.rank} at {source.identity.address}"
