"""What prefill tells a decode rank about one of its rooms."""

from __future__ import annotations

from pdcore.backend import AuxTransport
from pdcore.errors import FailureCode, KVTransferError
from pdcore.metadata import AuxDataCodec
from pdcore.model import Generation, KVPoll, RoomId
from pdcore.prefill.link import Destination
from pdcore.prefill.lives import Life
from pdcore.wire import AuxRow, Failure, Message, RequestMetadata, RoomStatus

__all__ = ["concluded", "ended_before", "failed", "not_paired", "succeeded", "superseded", "taken"]


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


def failed(
    room: RoomId, generation: Generation, rank: int, failure: KVTransferError, *, drained: bool = True
) -> RoomStatus:
    """Return why a room failed. ``drained``: no byte of it can land any more."""
    return RoomStatus(room, generation, rank, KVPoll.FAILED, drained, Failure.of(failure))


def not_paired(wanted: RequestMetadata, rank: int, address: str) -> RoomStatus:
    """Return that a room was asked for by somebody whom the prefill rank at ``address`` doesn't know."""
    failure = KVTransferError(
        FailureCode.PEER_LOST,
        f"prefill {address} is not paired with who asked for room {wanted.room}",
        "it lost its peer, or was started anew",
        "send the request again; the next one pairs anew",
    )
    return failed(wanted.room, wanted.generation, rank, failure)


def ended_before(life: Life, rank: int, now: float) -> KVTransferError:
    """Return what to tell decode rank ``rank``, which comes for a life that has ended."""
    failure, ended = life.record.failure, life.record.ended_at
    if failure is None:
        return taken(life, rank)
    ago = f"prefill ended the room {now - ended:.1f} s before" if ended else "prefill ended the room before"
    return KVTransferError(failure.code, failure.happened, f"{failure.there_is}; {ago}", failure.to_do)


def taken(life: Life, rank: int) -> KVTransferError:
    """Return why decode rank ``rank`` cannot have a room that another decode worker has."""
    promise = life.promised.get(rank)
    holders = [promise] if promise else list(life.promised.values())
    got = life.record.status is KVPoll.SUCCESS
    return KVTransferError(
        FailureCode.ABORTED,
        f"room {life.record.room} {'went' if got else 'is promised'} to another decode worker",
        f"{', '.join(str(identity) for *_, identity in holders)} {'got it' if got else 'asked first'}",
        "hand each request to one decode worker, with a room id of its own",
    )


def superseded(room: RoomId) -> KVTransferError:
    """Return why a room fails whose decode rank speaks of the next life of its id."""
    return KVTransferError(
        FailureCode.ABORTED,
        f"decode gave room {room} up",
        "it uses the room id for another request by now; its word of that was lost",
        "clear() the room, and open it again for the other request",
    )
