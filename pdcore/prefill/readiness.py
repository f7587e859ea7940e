"""When the source of a chunk may be read: what callers hand in as ``ready``, made plain."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from pdcore.checks.scalars import shown
from pdcore.errors import FailureCode, KVTransferError, PDCoreError, RoomError
from pdcore.model import RoomId

__all__ = ["SourceReadiness"]


@attrs.frozen(eq=False)
class SourceReadiness:
    """Either ``asks`` tells at once whether the source may be read, or ``waits`` returns when it may.

    Both are the caller's and may raise anything. ``room`` is whose source it is.
    """

    room: RoomId
    asks: Callable[[], object] | None = None
    waits: Callable[[], object] | None = None

    @classmethod
    def of(cls, room: RoomId, ready: object) -> SourceReadiness | None:
        """Return what ``ready`` says: an object with ``is_set()`` (as of threading) or ``query()`` (as of
        CUDA), or a callable that returns when the source may be read. None: it may be read now.

        Raises:
            RoomError: it is nothing of the kind.
        """
        if ready is None:
            return None
        for name in ("is_set", "query"):
            if callable(ask := getattr(ready, name, None)):
                return cls(room, asks=ask)
        if callable(ready):
            return cls(room, waits=ready)
        raise RoomError(
            f"the ready of a send() of room {room} can be neither asked nor called",
            shown(ready),
            "hand in a threading.Event, a torch.cuda.Event, or a callable that returns when the source may "
            "be read",
        )

    def failure(self, error: Exception) -> KVTransferError:
        """Return why the room fails, given what was raised."""
        if isinstance(error, PDCoreError):
            return KVTransferError.of(error)
        return KVTransferError(
            FailureCode.ENGINE,
            f"the ready of a send() of room {self.room} raised",
            repr(error),
            "look why what fills the pages failed; nothing of that send() was read",
        )
