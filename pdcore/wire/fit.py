"""What fits a message: each side takes messages of so many bytes, and tells the other when they pair."""

from __future__ import annotations

from collections.abc import Iterable, Sized

from pdcore.errors import FailureCode, KVTransferError, WireError
from pdcore.model import RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.wire.codec import Codec
from pdcore.wire.messages import AuxRow, Message, RequestMetadata
from pdcore.wire.stamp import STAMP_BYTES

__all__ = ["FRAME_BYTES", "check_size", "limit_of", "overweight", "too_large"]

FRAME_BYTES = 512
"""What a message with a row or a list takes beside it, at most."""
NO_LIMIT = 2**31 - 1


def limit_of(ours: int, there: PeerDescription | None) -> int:
    """Return the bytes that a message to a peer may have; ``ours`` is this side's own limit, 0: none."""
    theirs = there.max_message_bytes if there is not None else 0
    return min((limit for limit in (ours, theirs) if limit), default=NO_LIMIT)


def overweight(message: Message, limit: int) -> int | None:
    """Return the size of a message that is larger than ``limit`` bytes; None if it fits."""
    most = NO_LIMIT + 1
    if isinstance(message, RequestMetadata):
        items = len(message.pages) + sum(map(len, message.state_indices))
        most = 8 * items + FRAME_BYTES * (2 + len(message.state_indices))
    elif isinstance(message, AuxRow):
        most = len(message.row) + FRAME_BYTES
    if most <= limit:
        return None  # without encoding it twice
    size = sum(map(len, Codec.encode(message)))
    return size if size > limit else None


def check_size(stamped: Iterable[Sized], most: int) -> None:
    """Check that the frames of a message, its stamp and no address, have ``most`` bytes beside the stamp.

    Raises:
        WireError: they have more.
    """
    if (size := sum(map(len, stamped)) - STAMP_BYTES) > most:
        raise WireError(
            "a control message is larger than a peer takes",
            f"{size} bytes, the limit is {most}",
            "raise control.max_message_bytes on both sides",
        )


def too_large(what: str, room: RoomId, size: int, limit: int, code: FailureCode) -> KVTransferError:
    """Return why a room fails of which something does not fit a message."""
    return KVTransferError(
        code,
        f"{what} of room {room} does not fit a control message",
        f"{size} bytes, and both sides take {limit}",
        "raise control.max_message_bytes on both sides, or make the request smaller",
    )
