"""The control plane: typed messages, their encoding, and the channel that carries them."""

from pdcore.wire.channel import Channel, Route
from pdcore.wire.codec import SCHEMA_VERSION, Codec, Frame
from pdcore.wire.exposure import say_if_open
from pdcore.wire.messages import (
    MESSAGE_KINDS,
    Abort,
    AuxRow,
    Bye,
    Digests,
    Failure,
    Heartbeat,
    Message,
    PairReply,
    PairRequest,
    PeerDescription,
    Released,
    RequestMetadata,
    RoomStatus,
    Verdict,
)

__all__ = [
    "MESSAGE_KINDS",
    "SCHEMA_VERSION",
    "Abort",
    "AuxRow",
    "Bye",
    "Channel",
    "Codec",
    "Digests",
    "Failure",
    "Frame",
    "Heartbeat",
    "Message",
    "PairReply",
    "PairRequest",
    "PeerDescription",
    "Released",
    "RequestMetadata",
    "RoomStatus",
    "Route",
    "Verdict",
    "say_if_open",
]
