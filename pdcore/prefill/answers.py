"""What prefill tells a decode rank about one of its rooms."""

from __future__ import annotations

from pdcore.errors import FailureCode, KVTransferError
from pdcore.memory.metadata_buffers import AuxDataCodec
from pdcore.model import AuxTransport, Generation, KVPoll, RoomId
from pdcore.prefill.link import Destination
from pdcore.prefill.lives import Life
from pdcore.wire import AuxRow, Failure, Message, RequestMetadata, RoomStatus, Standing, overweight, too_large

__all__ = ["Answers", "ended_before", "superseded", "taken", "unheard_of"]


class Answers:
    """What prefill rank ``rank`` says; ``codec`` reads its aux rows."""

    def __init__(self, rank: int, codec: AuxDataCodec | None) -> None:
        self._rank, self._codec = rank, codec

    def concluded(self, destination: Destination, aux_index: int | None) -> list[Message]:
        """Return what tells a destination that its room succeeded, aux first; a dummy awaits nothing.

        Raises:
            KVTransferError: code AUX, the slot holds another room's row, or it does not fit a message.
        """
        link, wanted, out = destination.link, destination.wanted, list[Message]()
        if link.dummy:
            return out
        if (
            self._codec
            and aux_index is not None
            and link.carries_aux
            and link.aux_transport is AuxTransport.TCP
        ):
            row = AuxRow(wanted.room, wanted.generation, self._codec.encode(aux_index))
            if (size := overweight(row, link.message_limit)) is not None:
                raise too_large("the aux row", wanted.room, size, link.message_limit, FailureCode.AUX)
            out.append(row)
        return [*out, self.succeeded(wanted.room, wanted.generation)]

    def succeeded(self, room: RoomId, generation: Generation) -> RoomStatus:
        """Return that all of a room was sent."""
        return RoomStatus(room, generation, self._rank, KVPoll.SUCCESS, drained=True)

    def failed(
        self, room: RoomId, generation: Generation, failure: KVTransferError, *, drained: bool = True
    ) -> RoomStatus:
        """Return why a room failed. ``drained``: no byte of it can land any more."""
        return RoomStatus(room, generation, self._rank, KVPoll.FAILED, drained, Failure.of(failure))

    def stands(self, room: RoomId, generation: Generation, waits_for: str) -> Standing:
        """Return what prefill waits for in a room."""
        return Standing(room, generation, self._rank, waits_for)

    def not_paired(self, wanted: RequestMetadata, address: str) -> RoomStatus:
        """Return that somebody asked for a room whom the prefill rank at ``address`` doesn't know."""
        failure = KVTransferError(
            FailureCode.PEER_LOST,
            f"prefill {address} is not paired with who asked for room {wanted.room}",
            "it lost its peer, or was started anew",
            "send the request again; the next one pairs anew",
        )
        return self.failed(wanted.room, wanted.generation, failure)


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


def unheard_of(room: RoomId) -> KVTransferError:
    """Return why a room fails whose request prefill does not know."""
    return KVTransferError(
        FailureCode.PEER_LOST,
        f"prefill does not know the request of room {room}",
        "it was lost with a connection, or its room has ended, too long ago to tell how",
        "send the request again",
    )


def superseded(room: RoomId) -> KVTransferError:
    """Return why a room fails whose decode rank speaks of the next life of its id."""
    return KVTransferError(
        FailureCode.ABORTED,
        f"decode gave room {room} up",
        "it uses the room id for another request by now; its word of that was lost",
        "clear() the room, and open it again for the other request",
    )
