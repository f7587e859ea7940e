"""Every message of the control plane. Fields are named on the wire; index arrays get own frames.

Decode opens the connection. It sends PairRequest, Opened, RequestMetadata, Inquiry and Abort; prefill
answers with PairReply, AuxRow, RoomStatus, Standing and Released. Where bytes travel packed, prefill says
Packed and Quiet, decode Unpacked. If pages are verified, prefill sends Digests and decode Verdicts. Both send
Heartbeat and Bye.
"""

from __future__ import annotations

import attrs

from pdcore.errors import FailureCode, KVTransferError, Misfit
from pdcore.model import Generation, Incarnation, KVPoll, RoomId
from pdcore.pairing.description import PeerDescription
from pdcore.plan import IndexArray
from pdcore.wire.lost_process import LifeAnswer, LifeQuestion
from pdcore.wire.packed import Packed, Quiet, Unpacked

__all__ = [
    "MESSAGE_KINDS",
    "Abort",
    "AuxRow",
    "Bye",
    "Digests",
    "Failure",
    "Heartbeat",
    "Inquiry",
    "Message",
    "Opened",
    "PairReply",
    "PairRequest",
    "Released",
    "RequestMetadata",
    "RoomStatus",
    "Standing",
    "Verdict",
]


TEXT_BYTES = 1_000


@attrs.frozen
class Failure:
    """A :class:`~pdcore.errors.KVTransferError` as data."""

    code: FailureCode
    happened: str
    there_is: str
    to_do: str

    @classmethod
    def of(cls, error: KVTransferError) -> Failure:
        """Return the data of an error; its texts are cut so that they fit the smallest message."""
        return cls(error.code, _cut(error.happened), _cut(error.there_is), _cut(error.to_do))

    def error(self) -> KVTransferError:
        """Return the error of this data."""
        return KVTransferError(self.code, self.happened, self.there_is, self.to_do)


@attrs.frozen
class PairRequest:
    """Decode asks to be paired, and lends one of its staging rings; None: bytes cannot come packed.

    ``number``: of this pairing on decode's side; the answer has it too.
    """

    description: PeerDescription
    ring: int | None = None
    number: int = 0


@attrs.frozen
class PairReply:
    """Prefill accepts (no misfits, no failure) or says why not. The description is prefill's.

    ``number`` is that of the request; 0: not told.
    """

    description: PeerDescription
    misfits: tuple[Misfit, ...] = ()
    failure: Failure | None = None
    number: int = 0


@attrs.frozen(eq=False)
class RequestMetadata:
    """Where decode wants one request: its pages, aux slot and state items.

    ``remaining`` is the rest of the request's deadline in seconds, so that clocks may differ; ``age`` are
    the seconds since decode opened the room. ``trace`` is the W3C traceparent of decode's span; prefill's
    becomes its child.
    """

    room: RoomId
    generation: Generation
    pages: IndexArray
    aux_index: int | None
    state_indices: tuple[IndexArray, ...]
    decode_prefix_len: int
    remaining: float
    trace: str | None = None
    age: float = 0.0


@attrs.frozen
class AuxRow:
    """One aux row over TCP, sent before the RoomStatus that ends the room."""

    room: RoomId
    generation: Generation
    row: bytes


@attrs.frozen
class RoomStatus:
    """Prefill rank ``rank`` ended the room. ``drained``: no byte of it can land in its pages any more.

    ``packed``: so many slots with its bytes were handed over.
    """

    room: RoomId
    generation: Generation
    rank: int
    status: KVPoll
    drained: bool
    failure: Failure | None = None
    packed: int = 0


@attrs.frozen
class Abort:
    """Decode gave the request up and wants to know when its pages are safe.

    ``asked``: it has sent a RequestMetadata of this generation before. It opened the room ``age`` seconds
    ago, and gave it up ``ended`` seconds ago.
    """

    room: RoomId
    generation: Generation
    failure: Failure
    asked: bool = True
    age: float = 0.0
    ended: float = 0.0


@attrs.frozen
class Released:
    """Prefill has drained all writes of a failed room."""

    room: RoomId
    generation: Generation


@attrs.frozen(eq=False)
class Digests:
    """What prefill rank ``rank`` copied in one chunk of a room: which bytes, and their CRC-32.

    A long list comes in parts; ``part`` is the index of the first. Of decode's region ``regions[i]``, the
    ``lengths[i]`` bytes at ``offsets[i]`` must have ``digests[i]``, once what came in so many ``packed``
    slots of this rank is there.
    """

    room: RoomId
    generation: Generation
    rank: int
    chunk: int
    part: int
    regions: IndexArray
    offsets: IndexArray
    lengths: IndexArray
    digests: IndexArray
    packed: int = 0


@attrs.frozen
class Verdict:
    """Decode has compared one message of digests; without a failure they are right."""

    room: RoomId
    generation: Generation
    chunk: int
    part: int
    failure: Failure | None = None


@attrs.frozen
class Opened:
    """Decode opened a room ``age`` seconds ago, and has yet to say where it wants it."""

    room: RoomId
    generation: Generation
    age: float


@attrs.frozen
class Inquiry:
    """Decode's deadline is near: what does prefill wait for?"""

    room: RoomId
    generation: Generation


@attrs.frozen
class Standing:
    """What prefill rank ``rank`` waits for in a room, in words; what follows "it" in a sentence."""

    room: RoomId
    generation: Generation
    rank: int
    waits_for: str


@attrs.frozen
class Heartbeat:
    """The sender's control thread runs."""

    incarnation: Incarnation


@attrs.frozen
class Bye:
    """The sender no longer knows the receiver, and says why: it shuts down, or had lost it.

    ``drained``: none of its writes can land any more.
    """

    incarnation: Incarnation
    reason: str
    drained: bool


Message = (
    PairRequest
    | Digests
    | Verdict
    | Packed
    | Unpacked
    | Quiet
    | PairReply
    | RequestMetadata
    | AuxRow
    | RoomStatus
    | Abort
    | Released
    | Opened
    | Inquiry
    | Standing
    | LifeQuestion
    | LifeAnswer
    | Heartbeat
    | Bye
)


def _cut(text: str) -> str:
    encoded = text.encode()
    return text if len(encoded) <= TEXT_BYTES else encoded[: TEXT_BYTES - 3].decode(errors="ignore") + "..."


MESSAGE_KINDS: dict[int, type[Message]] = {
    1: PairRequest,
    2: PairReply,
    3: RequestMetadata,
    4: AuxRow,
    5: RoomStatus,
    6: Abort,
    7: Released,
    8: Heartbeat,
    9: Bye,
    10: Digests,
    11: Verdict,
    12: Opened,
    13: Inquiry,
    14: Standing,
    16: LifeQuestion,
    17: LifeAnswer,
    18: Packed,
    19: Unpacked,
    20: Quiet,
}
"""The numbers that stand for the kinds on the wire; never reused."""
