"""The control plane: typed messages, their encoding, and the channel that carries them."""

from pdcore.wire.channel import Channel, Route
from pdcore.wire.codec import SCHEMA_VERSION, Codec, Frame
from pdcore.wire.messages import (
    MESSAGE_KINDS,
    Abort,
    AuxRow,
    Bye,
    Failure,
    Heartbeat,
    Message,
    PairReply,
    PairRequest,
    PeerDescription,
    Released,
    RequestMetadata,
    RoomStatus,
)

__all__ = [
    "MESSAGE_KINDS",
    "SCHEMA_VERSION",
    "Abort",
    "AuxRow",
    "Bye",
    "Channel",
    "Codec",
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
]
