"""The words of the field as frozen values: roles, rooms, poll states, devices, deadlines."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import NewType

import attrs

from pdcore.checks.scalars import real, shown, whole
from pdcore.errors import ArgumentError

__all__ = [
    "CPU",
    "TERMINAL",
    "AuxTransport",
    "Certainty",
    "Clock",
    "Deadline",
    "Device",
    "DeviceKind",
    "EffectiveTransport",
    "Generation",
    "Incarnation",
    "KVPoll",
    "PeerIdentity",
    "Role",
    "RoomId",
    "new_incarnation",
]

RoomId = NewType("RoomId", int)
"""Identifies one request on both sides; chosen by the router, 0 <= room < 2**63."""

Generation = NewType("Generation", int)
"""Tells a reused room id from the old one; grows within one manager's life, starts at 1."""

Incarnation = NewType("Incarnation", str)
"""One life of one manager: 32 hex digits, new at every start, so a restarted peer is new."""

Clock = Callable[[], float]
"""Returns monotonic seconds; tests hand in their own."""


def new_incarnation() -> Incarnation:
    """Return a fresh random incarnation."""
    return Incarnation(uuid.uuid4().hex)


class Role(Enum):
    """Which side of the disaggregation a manager stands on."""

    PREFILL = "prefill"
    DECODE = "decode"


class KVPoll(IntEnum):
    """The state of a room as a scheduler sees it (the values are SGLang's).

    FAILED and SUCCESS are terminal; all other moves only go up.
    """

    FAILED = 0
    BOOTSTRAPPING = 1
    WAITING_FOR_INPUT = 2
    TRANSFERRING = 3
    SUCCESS = 4

    @property
    def terminal(self) -> bool:
        """Whether the room has ended."""
        return self in TERMINAL


TERMINAL = (KVPoll.FAILED, KVPoll.SUCCESS)


class DeviceKind(Enum):
    """The kind of memory that a region lies in."""

    CPU = "cpu"
    CUDA = "cuda"
    NPU = "npu"


def _device_kind(kind: DeviceKind) -> DeviceKind:
    try:
        return DeviceKind(kind)
    except Exception as error:  # a ValueError, or what the value raises where it is compared
        known = ", ".join(one.value for one in DeviceKind)
        raise ArgumentError("a device is of no known kind", shown(kind), f"use one of {known}") from error


def _ordinal(index: int) -> int:
    number = whole(index)
    if number is None or number < 0:
        raise ArgumentError("a device has no such index", shown(index), "use an integer of 0 or more")
    return number


@attrs.frozen
class Device:
    """A memory device; ``index`` is the ordinal of the accelerator, 0 for the CPU."""

    kind: DeviceKind = attrs.field(default=DeviceKind.CPU, converter=_device_kind)
    index: int = attrs.field(default=0, converter=_ordinal)

    def __str__(self) -> str:
        return "cpu" if self.kind is DeviceKind.CPU else f"{self.kind.value}:{self.index}"


CPU = Device()


LONGEST = 1e9
"""Seconds that a deadline may lie ahead: longer waits are more than the system takes."""


def _point(at: object) -> float:
    if type(at) is float and -math.inf < at < math.inf:
        return at
    point = real(at)
    if point is None:
        raise ArgumentError(
            "a deadline is no point in time",
            f"{shown(at)}, where seconds of the monotonic clock are due",
            "use Deadline.after(seconds)",
        )
    return point


@attrs.frozen
class Deadline:
    """A point on the monotonic clock (seconds) after which waiting ends; :meth:`after` makes one.

    Raises:
        ArgumentError: ``at`` is not a finite number.
    """

    at: float = attrs.field(converter=_point)
    clock: Clock = attrs.field(default=time.monotonic, repr=False, eq=False)

    @classmethod
    def after(cls, seconds: float, clock: Clock = time.monotonic) -> Deadline:
        """Return the deadline that lies ``seconds`` from now.

        Raises:
            ArgumentError: it is not a positive finite number, or more than 30 years.
        """
        number = seconds if type(seconds) is float else real(seconds)
        if number is None or not 0 < number <= LONGEST:
            raise ArgumentError(
                f"a deadline needs a positive finite number of seconds, not {shown(seconds)}",
                f"seconds are above 0, and at most {LONGEST:g}",
                "hand in how long may be waited, in seconds",
            )
        return cls(clock() + number, clock)

    def remaining(self) -> float:
        """Return the seconds left, never below 0."""
        return max(0.0, min(self.at - self.clock(), LONGEST))

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed."""
        return self.clock() >= self.at

    def within(self, seconds: float) -> Deadline:
        """Return a sub-deadline: ``seconds`` from now, or this one if that is earlier."""
        return Deadline(min(self.at, self.clock() + seconds), self.clock)


@attrs.frozen
class PeerIdentity:
    """Names a peer: its role, incarnation and control address."""

    role: Role
    incarnation: Incarnation
    address: str

    def __hash__(self) -> int:
        return hash(self.incarnation)  # which a string keeps

    def __str__(self) -> str:
        return f"{self.role.value} {self.address} ({self.incarnation[:8]})"


class AuxTransport(Enum):
    """How aux rows reach the decode side."""

    ENGINE = "engine"
    TCP = "tcp"


class Certainty(Enum):
    """How sure an engine is of the transport it runs on."""

    VERIFIED = "verified"
    INFERRED = "inferred"
    UNKNOWN = "unknown"


@attrs.frozen
class EffectiveTransport:
    """The transport that an engine really uses, as far as it can tell; ``how`` says from what."""

    name: str
    certainty: Certainty
    how: str = ""
