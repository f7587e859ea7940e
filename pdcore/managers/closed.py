"""What a closed manager says to those that still want something of it."""

from __future__ import annotations

from pdcore.errors import FailureCode, KVTransferError, RoomError
from pdcore.model import Incarnation, Role

__all__ = ["closed", "shut_down"]


def closed(role: Role) -> RoomError:
    """Return the error of a room that was to be opened too late."""
    return RoomError(f"the {role.value} manager is closed", "no room can be opened", "start a new manager")


def shut_down(role: Role, incarnation: Incarnation) -> KVTransferError:
    """Return the failure of a room that was open when its manager was closed."""
    return KVTransferError(
        FailureCode.SHUTDOWN,
        f"the {role.value} manager was closed",
        f"incarnation {incarnation[:8]}",
        "send the request to another worker",
    )
