"""How much of what reaches the bootstrap service, or another of ours over HTTP, is taken, key or not."""

from __future__ import annotations

import resource

import attrs

from pdcore.checks.scalars import real, shown, whole
from pdcore.errors import ArgumentError

__all__ = ["Limits"]

SHARE_OF_DESCRIPTORS = 2
MOST = 2**31 - 1


def _positive(limits: Limits, field: attrs.Attribute[float], value: object) -> None:
    exact = isinstance(field.default, int)
    number = whole(value) if exact else real(value)
    if number is None or not 0 < number <= MOST:
        kind = "a whole number" if exact else "a number"
        happened = f"{field.name} of the bootstrap service is no limit"
        raise ArgumentError(happened, shown(value), f"hand in {kind} above 0 and up to {MOST}")
    object.__setattr__(limits, field.name, number)  # only while it is made: it is frozen


@attrs.frozen(field_transformer=lambda _, fields: [f.evolve(validator=_positive) for f in fields])
class Limits:
    """The figures, which hold for strangers as for everybody else.

    ``connections`` are held at once, and at most half the descriptors that the process may have; one more
    ends the one that said nothing for the longest time. A request is there in full ``request_seconds``
    after its first byte (or after the connection was made), with at most ``header_bytes`` and ``headers``
    before its body and ``body_bytes`` in it, and its answer is read within as many seconds. Of all requests
    that are not there in full ``arriving_bytes`` are held; more ends the oldest of them. A connection
    between two requests is held for ``idle_seconds``. A look-up waits for ``wait_seconds`` at most, and of
    ``waiting`` look-ups the oldest is answered (503: ask again) when one more comes. ``ranks`` may be
    registered, and ``rooms`` are remembered, the newest. Challenges take no memory: only those that came
    back under a right code are kept, for a minute.
    """

    connections: int = 1024
    header_bytes: int = 8 * 1024
    headers: int = 64
    body_bytes: int = 64 * 1024
    arriving_bytes: int = 16 * 2**20
    request_seconds: float = 10.0
    idle_seconds: float = 60.0
    wait_seconds: float = 60.0
    waiting: int = 512
    ranks: int = 16_384
    rooms: int = 262_144

    @property
    def held(self) -> int:
        """Connections that are held in this process, as its limit of descriptors is now."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        descriptors = soft if soft != resource.RLIM_INFINITY else self.connections * SHARE_OF_DESCRIPTORS
        return max(1, min(self.connections, descriptors // SHARE_OF_DESCRIPTORS))

    @property
    def request_bytes(self) -> int:
        """Bytes of one request."""
        return self.header_bytes + self.body_bytes

    @property
    def answer_seconds(self) -> float:
        """Seconds from a request to the end of its answer."""
        return self.wait_seconds + self.request_seconds
