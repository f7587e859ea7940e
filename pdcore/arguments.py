"""What callers hand to managers and rooms, checked where it comes in: the value in its plain form, or an
error that says what was handed in and what is due. What is no deadline or no room id gets no further."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from pdcore.checks.scalars import real, shown, whole
from pdcore.errors import ArgumentError, RoomError
from pdcore.model import Deadline, RoomId

__all__ = ["callables", "count", "due", "instance", "moment", "named", "require_deadline", "room_id"]

LAST_ROOM = 2**63 - 1
MOST = 2**63 - 1
"""What messages hold at most."""


def room_id(room: object) -> RoomId:
    """Return a room id as a plain int: numpy's integers and 0-d integer tensors are the same room.

    Raises:
        RoomError: it is not an integer from 0 to 2**63 - 1.
    """
    number = whole(room)
    if number is not None and 0 <= number <= LAST_ROOM:
        return RoomId(number)
    named = shown(room) if number is None else str(number)
    raise RoomError(f"{named} is no room id", "rooms are 0 to 2**63 - 1", "choose another id")


def count(room: RoomId, what: str, value: object) -> int:
    """Return a number of pages, tokens or the like, as a plain int from 0 to 2**63 - 1.

    Raises:
        RoomError: it is none; names the room and ``what``.
    """
    number = whole(value)
    if number is not None and 0 <= number <= MOST:
        return number
    there_is = f"{what}={number}" if number is not None else f"{what} is {shown(value)}"
    raise RoomError(f"{what} of room {room} is no count", there_is, "hand in an integer from 0 to 2**63 - 1")


def require_deadline(what: str, value: object) -> Deadline:
    """Return the value, which must be a deadline.

    Raises:
        ArgumentError: it is something else; says how to make a deadline of a number.
    """
    if isinstance(value, Deadline):
        return value
    seconds = real(value)
    example = f"Deadline.after({seconds:g})" if seconds is not None and seconds > 0 else "Deadline.after(30)"
    raise ArgumentError(
        f"{what} is no deadline",
        f"{shown(value)}, where a Deadline is due",
        f"hand in Deadline.after(seconds), such as {example}: so many seconds from now",
    )


def due(deadline: Deadline | None, seconds: float) -> Deadline:
    """Return the deadline of a room: what was handed in, or so many seconds from now if that is None.

    Raises:
        ArgumentError: it is no deadline.
    """
    if deadline is None:
        return Deadline.after(seconds)
    return require_deadline("the deadline of a room", deadline)


def moment(deadline: Deadline) -> float:
    """Return a deadline as a moment of the monotonic clock, whatever its own is; now, if that cannot tell."""
    try:
        return deadline.at if deadline.clock is time.monotonic else time.monotonic() + deadline.remaining()
    except Exception:  # its clock is the caller's
        return time.monotonic()


def instance(what: str, value: object, wanted: type, to_do: str) -> None:
    """Check the type of a part that a manager is made of.

    Raises:
        ArgumentError: it is of another type.
    """
    if not isinstance(value, wanted):
        raise ArgumentError(f"{what} is no {wanted.__name__}", shown(value), to_do)


def named(what: str, values: object) -> None:
    """Check that something is a mapping of names to values.

    Raises:
        ArgumentError: it is another thing, or one of its keys is no text.
    """
    to_do = "hand in a mapping of names to values"
    instance(what, values, Mapping, to_do)
    assert isinstance(values, Mapping)
    for name in values:
        instance(f"a name in {what}", name, str, to_do)


def callables(what: str, values: object) -> Sequence[Callable[..., object]]:
    """Return a sequence of callables.

    Raises:
        ArgumentError: it is no sequence, or one of them cannot be called.
    """
    if isinstance(values, Sequence) and not isinstance(values, str | bytes):
        wrong = [value for value in values if not callable(value)]
        if not wrong:
            return values
    raise ArgumentError(
        f"{what} are no sequence of callables",
        shown(values),
        "hand in a list or tuple of functions, or of objects that can be called with an event",
    )
