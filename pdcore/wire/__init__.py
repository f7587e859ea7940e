"""The control plane: typed messages, their encoding, and the channel that carries them."""

from pdcore.wire.access.curve import require_curve
from pdcore.wire.access.exposure import say_if_open
from pdcore.wire.channel import Channel
from pdcore.wire.codec import SCHEMA_VERSION, Codec, Frame
from pdcore.wire.fit import FRAME_BYTES, limit_of, overweight, too_large
from pdcore.wire.lost_process import LifeAnswer, LifeQuestion
from pdcore.wire.messages import (
    MESSAGE_KINDS,
    Abort,
    AuxRow,
    Bye,
    Digests,
    Failure,
    Heartbeat,
    Inquiry,
    Message,
    Opened,
    PairReply,
    PairRequest,
    Released,
    RequestMetadata,
    RoomStatus,
    Standing,
    Verdict,
)
from pdcore.wire.monitor import Connection, ConnectionEvent
from pdcore.wire.packed import Packed, Quiet, Unpacked
from pdcore.wire.sockets import Route

__all__ = [
    "FRAME_BYTES",
    "MESSAGE_KINDS",
    "SCHEMA_VERSION",
    "Abort",
    "AuxRow",
    "Bye",
    "Channel",
    "Codec",
    "Connection",
    "ConnectionEvent",
    "Digests",
    "Failure",
    "Frame",
    "Heartbeat",
    "Inquiry",
    "LifeAnswer",
    "LifeQuestion",
    "Message",
    "Opened",
    "Packed",
    "PairReply",
    "PairRequest",
    "Quiet",
    "Released",
    "RequestMetadata",
    "RoomStatus",
    "Route",
    "Standing",
    "Unpacked",
    "Verdict",
    "limit_of",
    "overweight",
    "require_curve",
    "say_if_open",
    "too_large",
]
