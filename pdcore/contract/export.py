"""What an engine tells of its registered memory to peers, checksummed on its way."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import attrs
import msgspec

from pdcore.contract.regions import Region, RegionInfo
from pdcore.errors import EngineError

__all__ = ["EXPORT_VERSION", "Export", "open_export", "seal_export"]

EXPORT_VERSION = 1


@attrs.frozen
class Export:
    """The regions, and in ``native`` what the engine itself needs of them."""

    version: int
    regions: tuple[RegionInfo, ...]
    native: bytes


# Made at import: msgspec 0.22 crashes when two threads are the first to decode a type (lanes that connect).
_read_export = msgspec.msgpack.Decoder(Export).decode


def seal_export(regions: Sequence[Region], native: bytes) -> bytes:
    """Return the export of registered regions: its CRC-32 in 4 bytes, then msgpack."""
    body = msgspec.msgpack.encode(Export(EXPORT_VERSION, tuple(r.info for r in regions), native))
    return zlib.crc32(body).to_bytes(4, "big") + body


def open_export(sealed: bytes) -> Export:
    """Return the export of a peer.

    Raises:
        EngineError: it is corrupt, or of another version.
    """
    if len(sealed) < 5 or zlib.crc32(sealed[4:]).to_bytes(4, "big") != sealed[:4]:
        raise EngineError(
            "a peer's region export is corrupt",
            f"{len(sealed)} bytes whose checksum does not match",
            "pair again; if it persists, look at what carries the control messages",
        )
    try:
        export = _read_export(sealed[4:])
    except msgspec.DecodeError as error:
        there = str(error)
    else:
        if export.version == EXPORT_VERSION:
            return export
        there = f"version {export.version} there, {EXPORT_VERSION} here"
    raise EngineError("a peer's region export cannot be read", there, "run the same pdcore on both sides")
