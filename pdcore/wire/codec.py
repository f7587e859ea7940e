"""Messages to frames and back: a small header, a msgpack map, and one frame per index array.

Frame 0 is ``magic (4) | schema version (u16) | kind (u16) | critical length (u16)``, big-endian,
then that many bytes of comma-separated field names, then the msgpack body. A receiver ignores
fields that it doesn't know, except those that the sender lists as critical.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Protocol

import attrs
import msgspec
import numpy as np

from pdcore.errors import WireError
from pdcore.plan import IndexArray
from pdcore.wire.messages import MESSAGE_KINDS, Message

__all__ = ["SCHEMA_VERSION", "Codec", "Frame"]

SCHEMA_VERSION = 1
MAX_FRAMES = 64
_HEADER = struct.Struct(">4sHHH")
_MAGIC = b"PDKV"
_INDEX = np.dtype("<i8")
_KIND_OF: dict[type, int] = {cls: kind for kind, cls in MESSAGE_KINDS.items()}
_FIELDS: dict[int, frozenset[str]] = {
    kind: frozenset(f.name for f in attrs.fields(cls)) for kind, cls in MESSAGE_KINDS.items()
}
_TO_DO = "run matching pdcore versions on both sides, and let nothing else send to this port"


class Frame(Protocol):
    """A received frame: ``zmq.Frame``, or anything that has its ``buffer``."""

    @property
    def buffer(self) -> memoryview:
        """The bytes, not copied."""
        ...


class Codec:
    """Encodes from any thread; decodes on one thread only (it keeps the frames it is decoding)."""

    def __init__(self) -> None:
        self._frames: Sequence[Frame] = ()
        self._decoders: dict[int, msgspec.msgpack.Decoder[Message]] = {
            kind: msgspec.msgpack.Decoder(cls, dec_hook=self._index_of) for kind, cls in MESSAGE_KINDS.items()
        }

    @staticmethod
    def encode(message: Message, critical: Sequence[str] = ()) -> list[bytes | memoryview]:
        """Return the frames of a message; arrays are not copied."""
        arrays: list[bytes | memoryview] = []

        def frame_of(value: object) -> int:
            if not isinstance(value, np.ndarray):
                raise NotImplementedError(type(value).__name__)
            arrays.append(np.ascontiguousarray(value, _INDEX).data.cast("B"))
            return len(arrays)

        body = msgspec.msgpack.encode(message, enc_hook=frame_of)
        names = ",".join(critical).encode()
        header = _HEADER.pack(_MAGIC, SCHEMA_VERSION, _KIND_OF[type(message)], len(names))
        return [header + names + body, *arrays]

    def decode(self, frames: Sequence[Frame]) -> Message:
        """Return the message of some frames.

        Raises:
            WireError: for anything that is not a message of this schema version.
        """
        if not 1 <= len(frames) <= MAX_FRAMES or len(frames[0].buffer) < _HEADER.size:
            raise WireError(
                "a control message has the wrong shape",
                f"{len(frames)} frames, the first of {len(frames[0].buffer) if frames else 0} bytes",
                _TO_DO,
            )
        head = frames[0].buffer
        magic, schema, kind, critical = _HEADER.unpack_from(head)
        if magic != _MAGIC or schema != SCHEMA_VERSION or kind not in self._decoders:
            raise WireError(
                "a control message is not of this protocol",
                f"magic {magic!r}, schema {schema} (here {SCHEMA_VERSION}), kind {kind}",
                _TO_DO,
            )
        names, body = head[_HEADER.size :][:critical], head[_HEADER.size + critical :]
        if critical:
            _refuse_unknown(names, kind)
        self._frames = frames
        try:
            return self._decoders[kind].decode(body)
        # Decoding runs the validators of many classes on a stranger's values: whatever they raise
        # means the same here, and must not end the channel's thread.
        except Exception as error:
            name = MESSAGE_KINDS[kind].__name__
            raise WireError(f"a {name} message is malformed", str(error) or repr(error), _TO_DO) from error
        finally:
            self._frames = ()

    def _index_of(self, _wanted: type, value: object) -> IndexArray:
        if not isinstance(value, int) or not 1 <= value < len(self._frames):
            raise ValueError(f"frame {value!r} of {len(self._frames)} does not exist")
        return np.frombuffer(self._frames[value].buffer, _INDEX)


def _refuse_unknown(names: memoryview, kind: int) -> None:
    unknown = set(bytes(names).decode("ascii", "replace").split(",")) - _FIELDS[kind]
    if unknown:
        raise WireError(
            f"a {MESSAGE_KINDS[kind].__name__} message needs fields that this pdcore does not know",
            f"critical fields {', '.join(sorted(unknown))}",
            "upgrade pdcore on this side",
        )
