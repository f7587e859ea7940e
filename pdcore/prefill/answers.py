"""What prefill tells a decode rank about one of its rooms."""

from __future__ import annotations

from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import KVPoll
from pdcore.wire import Failure, RequestMetadata, RoomStatus

__all__ = ["failed", "not_paired", "succeeded"]


def succeeded(wanted: RequestMetadata, rank: int) -> RoomStatus:
    """Return that prefill rank ``rank`` has sent all of a room."""
    return RoomStatus(wanted.room, wanted.generation, rank, KVPoll.SUCCESS, drained=True)


def failed(wanted: RequestMetadata, rank: int, failure: KVTransferError, *, drained: bool) -> RoomStatus:
    """Return why a room failed. ``drained``: no byte of it can land any more."""
    return RoomStatus(wanted.room, wanted.generation, rank, KVPoll.FAILED, drained, Failure.of(failure))


def not_paired(wanted: RequestMetadata, rank: int, address: str) -> RoomStatus:
    """Return that a room was asked for by somebody whom the prefill rank at ``address`` doesn't know."""
    failure = KVTransferError(
        FailureCode.PEER_LOST,
        f"prefill {address} is not paired with who asked for room {wanted.room}",
        "it lost its peer, or was started anew",
        "send the request again; the next one pairs anew",
    )
    return failed(wanted, rank, failure, drained=True)
