"""What can be configured: frozen records with their defaults, ranges and units.

Where the values come from is the matter of :mod:`pdcore.config.sources`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from types import NoneType
from typing import Any, Literal, TypeVar

import attrs

from pdcore.checks.scalars import real, shown, whole
from pdcore.config.auth_key import AuthKey
from pdcore.config.auth_key import auth_key as to_auth_key
from pdcore.errors import AddressError, ConfigError, ConfigProblem
from pdcore.host.address import join, parse_advertised, parse_host

__all__ = [
    "Config",
    "ControlConfig",
    "LivenessConfig",
    "QuarantineConfig",
    "Timeouts",
    "TransferConfig",
    "TransferModel",
]

SET_IN_CODE = "code"
MAX_SECONDS = 7 * 24 * 3600.0
Number = TypeVar("Number", int, float)


def _within(low: Number, high: Number) -> Callable[[object, attrs.Attribute[Number], Number], None]:
    def validate(_instance: object, attribute: attrs.Attribute[Number], value: Number) -> None:
        number = whole(value) if type(low) is int else real(value)
        if number is None and (type(low) is int or not isinstance(value, float)):
            kind = "whole number" if type(low) is int else "number"
            raise _wrong(attribute, f"must be a {kind} in {low}..{high}, is {shown(value)}")
        if number is None or not low <= number <= high:  # nan and infinity are no real numbers
            raise _wrong(attribute, f"must lie in {low}..{high}, is {value}")

    return validate


def _wrong(attribute: attrs.Attribute[Any], reason: str) -> ConfigError:
    return ConfigError([ConfigProblem(attribute.name, SET_IN_CODE, reason)])


def _one_of(*known: object) -> Callable[[object, attrs.Attribute[Any], object], None]:
    def validate(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not any(type(value) is type(one) and value == one for one in known):
            names = ", ".join(str(one) if isinstance(one, Enum) else repr(one) for one in known)
            raise _wrong(attribute, f"must be one of {names}, is {shown(value)}")

    return validate


def _a(*kinds: type) -> Callable[[object, attrs.Attribute[Any], object], None]:
    def validate(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if not isinstance(value, kinds):
            names = " or ".join("None" if kind is NoneType else kind.__name__ for kind in kinds)
            raise _wrong(attribute, f"must be a {names}, is {shown(value)}")

    return validate


def _not_empty(_instance: object, attribute: attrs.Attribute[str], value: object) -> None:
    if not isinstance(value, str):
        raise _wrong(attribute, f"must be a name, is {shown(value)}")
    if not value:
        raise _wrong(attribute, "must not be empty")


def _no_longer(most: float, request: object) -> float:
    """Return the default of a timeout within another, which may be no number: its validator says so."""
    return most if (number := real(request)) is None else min(most, number)


def _host(_instance: object, attribute: attrs.Attribute[str], value: str) -> None:
    try:
        parse_host(value)
    except AddressError as error:
        reason = f"must be a name or an address of this machine, is {value!r}: {error.there_is}"
        raise ConfigError([ConfigProblem(attribute.name, SET_IN_CODE, reason)]) from error


def _advertised(_instance: object, attribute: attrs.Attribute[str | None], value: str | None) -> None:
    try:
        if value is not None:
            parse_advertised(value)
    except AddressError as error:
        reason = f"must be what peers dial, host or host:port, is {value!r}: {error.there_is}"
        raise ConfigError([ConfigProblem(attribute.name, SET_IN_CODE, reason)]) from error


_seconds = _within(0.001, MAX_SECONDS)
_port = _within(0, 65535)


class TransferModel(Enum):
    """Who submits to the engine: lanes of worker threads, or ``send`` itself with progress in ``poll``."""

    WORKERS = "workers"
    INLINE = "inline"


@attrs.frozen
class ControlConfig:
    """The control channel: ``port`` to listen on (0: any free one) and the size limit of one message."""

    port: int = attrs.field(default=0, validator=_port)
    max_message_bytes: int = attrs.field(default=256 * 2**20, validator=_within(4096, 2**31 - 1))


@attrs.frozen
class TransferConfig:
    """How bytes are submitted.

    ``model``: None is the one that the backend declares. ``lanes_per_peer`` counts worker threads per
    destination (workers model). ``aux`` says how aux rows travel: as the backend says (auto), through the
    engine, or over TCP. ``prefix_reuse`` lets decode ask for only what it lacks. ``verify``: decode compares
    digests of what was sent and what arrived, of a sample or of all pages, before a room succeeds.
    ``staging``: whether bytes go packed, through slots of the other side, which copies them to their pages:
    where that is faster (auto), never (off), or always; then no peer writes to pages, and those of a room
    that failed are safe at once. ``staging_rings``: how many peers may send packed bytes at a time, lost ones
    that may still write among them; a ring takes 32 MiB.
    """

    model: TransferModel | None = attrs.field(default=None, validator=_one_of(None, *TransferModel))
    lanes_per_peer: int = attrs.field(default=1, validator=_within(1, 64))
    aux: Literal["auto", "engine", "tcp"] = attrs.field(
        default="auto", validator=_one_of("auto", "engine", "tcp")
    )
    prefix_reuse: bool = attrs.field(default=True, validator=_a(bool))
    verify: Literal["off", "sample", "all"] = attrs.field(
        default="off", validator=_one_of("off", "sample", "all")
    )
    staging: Literal["auto", "off", "always"] = attrs.field(
        default="auto", validator=_one_of("auto", "off", "always")
    )
    staging_rings: int = attrs.field(default=8, validator=_within(1, 4096))


@attrs.frozen
class Timeouts:
    """Limits of every wait, in seconds.

    ``pairing`` and ``bootstrap`` happen inside ``request`` and must not exceed it; left alone they are
    30 s and 10 s, or ``request`` if that is shorter.
    """

    request: float = attrs.field(default=300.0, validator=_seconds)
    pairing: float = attrs.field(
        default=attrs.Factory(lambda self: _no_longer(30.0, self.request), takes_self=True),
        validator=_seconds,
    )
    bootstrap: float = attrs.field(
        default=attrs.Factory(lambda self: _no_longer(10.0, self.request), takes_self=True),
        validator=_seconds,
    )
    engine_start: float = attrs.field(default=60.0, validator=_seconds)
    shutdown: float = attrs.field(default=10.0, validator=_seconds)

    def __attrs_post_init__(self) -> None:
        problems = [
            ConfigProblem(
                name,
                SET_IN_CODE,
                f"must not exceed the request timeout of {self.request:g} s, is {seconds:g}",
            )
            for name, seconds in (("pairing", self.pairing), ("bootstrap", self.bootstrap))
            if seconds > self.request
        ]
        if problems:
            raise ConfigError(problems)


@attrs.frozen
class LivenessConfig:
    """Heartbeats: seconds between two, and how many may fail in a row before a peer counts as lost.

    One that is connected does not: its interpreter may stand still for long. Its connection is ended at once
    by the kernel of a process that died, after ``interval * max_failures`` seconds where a whole machine is
    gone, and after three times as long where only libzmq's thread over there does not answer. A process of
    this machine that is stopped (SIGSTOP, a debugger) is lost after ``interval * max_failures`` seconds.
    """

    interval: float = attrs.field(default=2.0, validator=_within(0.01, 3600.0))
    max_failures: int = attrs.field(default=3, validator=_within(1, 1000))


@attrs.frozen
class QuarantineConfig:
    """Pages that a lost peer may still write to, or that are on their way to it.

    They are safe once that is proven, as a rule seconds after its process has ended. ``grace``: seconds after
    which a lost peer counts as silent though nothing proves it; None: never. If it was only cut off, its
    late bytes land in pages that are in use again: longer than any outage that it may survive.
    """

    grace: float | None = attrs.field(default=None, validator=attrs.validators.optional(_seconds))


@attrs.frozen
class Config:
    """Everything that can be configured.

    ``backend`` is a selectable name, for ``pdcore.select(config)``: a manager takes no backend of another
    name; None leaves that to who selects. ``backend_options`` are structured by that backend's own options
    class when it is selected. ``require_transport`` turns an engine that really runs on another
    transport into an error. ``host`` is where this side listens: an address or a name of this machine, an
    interface (``eth0``), or a wildcard. ``advertise`` is what peers are told instead, where they dial
    another host or host:port (containers, NAT); None: what ``host`` is, and for a wildcard the source
    address of the default route. ``auth_key`` is the secret that all who may speak on the control plane
    share; None leaves it open. ``metrics_port`` is where a manager serves its Prometheus metrics on ``host``
    (0: any free port, which the log tells); None: nowhere.

    Raises:
        ConfigError: a value lies outside its range, or sub-timeouts do not nest.
    """

    backend: str | None = attrs.field(default=None, validator=attrs.validators.optional(_not_empty))
    backend_options: Mapping[str, object] = attrs.field(factory=dict, hash=False, validator=_a(Mapping))
    require_transport: str | None = attrs.field(default=None, validator=_a(str, NoneType))
    host: str = attrs.field(default="127.0.0.1", validator=_host)
    advertise: str | None = attrs.field(default=None, validator=_advertised)
    auth_key: AuthKey | None = attrs.field(default=None, converter=to_auth_key)
    metrics_port: int | None = attrs.field(default=None, validator=attrs.validators.optional(_port))
    control: ControlConfig = attrs.field(factory=ControlConfig, validator=_a(ControlConfig))
    transfer: TransferConfig = attrs.field(factory=TransferConfig, validator=_a(TransferConfig))
    timeouts: Timeouts = attrs.field(factory=Timeouts, validator=_a(Timeouts))
    liveness: LivenessConfig = attrs.field(factory=LivenessConfig, validator=_a(LivenessConfig))
    quarantine: QuarantineConfig = attrs.field(factory=QuarantineConfig, validator=_a(QuarantineConfig))

    def of_process(self, nth: int) -> Config:
        """Return it for the ``nth`` process of a machine: the ports that are set are ``nth`` higher.

        Raises:
            ConfigError: there is no such port.
        """

        def higher(port: int | None) -> int | None:
            return port + nth if port else port

        told = self.advertise
        if told is not None and (place := parse_advertised(told))[1]:
            told = join(place[0], (place[1] or 0) + nth)
        control = attrs.evolve(self.control, port=higher(self.control.port) or 0)
        return attrs.evolve(self, control=control, advertise=told, metrics_port=higher(self.metrics_port))
