"""What prefill tells a decode rank about one of its rooms."""

from __future__ import annotations

from pdcore.backend import AuxTransport
from pdcore.errors import FailureCode, KVTransferError
from pdcore.metadata import AuxDataCodec
from pdcore.model import KVPoll
from pdcore.prefill.link import Destination
from pdcore.wire import AuxRow, Failure, Message, RequestMetadata, RoomStatus

__all__ = ["concluded", "failed", "not_paired", "succeeded"]


def concluded(
    destination: Destination, rank: int, codec: AuxDataCodec | None, aux_index: int | None
) -> list[Message]:
    """Return what tells a destination that its room succeeded, aux first; a dummy awaits nothing."""
    link, wanted, out = destination.link, destination.wanted, list[Message]()
    if link.dummy:
        return out
    if codec and aux_index is not None and link.carries_aux and link.aux_transport is AuxTransport.TCP:
        out.append(AuxRow(wanted.room, wanted.generation, codec.encode(aux_index)))
    return [*out, succeeded(wanted, rank)]


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
