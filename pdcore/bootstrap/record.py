"""What a prefill rank tells the bootstrap service about itself."""

from __future__ import annotations

import re

import attrs

from pdcore.errors import AddressError, BootstrapError
from pdcore.host.address import parse_address
from pdcore.layout.fingerprint import Fingerprint
from pdcore.model import Incarnation, RoomId
from pdcore.pairing.topology import DPChoice, Topology

__all__ = [
    "CROWDED",
    "PrefillFacts",
    "RankGroup",
    "RankRecord",
    "ReplicaQuery",
    "RoomsRecord",
    "Traits",
]


CROWDED = 503
"""The status of an answer that only says: ask again."""


def _a_name(_instance: object, _attribute: attrs.Attribute[Incarnation], value: str) -> None:
    if not re.fullmatch(r"[\w.-]{1,64}", value, re.ASCII):
        to_do = "send what new_incarnation() gives"
        raise BootstrapError("an incarnation is no name", f"it is {value[:80]!r}", to_do)


def _one_form(_instance: object, _attribute: attrs.Attribute[str], value: str) -> None:
    written = str(parse_address(value, "the address of a rank"))
    if written != value:
        raise AddressError(
            f"a rank's address is written {written}", f"it is {value[:80]!r}", f"send {written}"
        )


@attrs.frozen
class Traits:
    """What a rank says of itself beside its topology; empty where it says nothing.

    ``page_size`` is in tokens, ``dtype`` and ``fingerprint`` are its layout's.
    """

    backend: str = ""
    protocol: str = ""
    version: str = ""
    engine_version: str = ""
    page_size: int = 0
    dtype: str = ""
    fingerprint: Fingerprint | None = None


@attrs.frozen
class RankRecord:
    """One registered prefill rank: its control ``address``, and for how long to believe it.

    The address can be dialled and is in its one form: IPv6 has brackets.

    The rank renews within ``lease`` seconds from its control thread; one that doesn't is stale.
    """

    incarnation: Incarnation = attrs.field(validator=_a_name)
    address: str = attrs.field(validator=_one_form)
    topology: Topology
    lease: float
    traits: Traits = Traits()


@attrs.frozen
class PrefillFacts:
    """What decode knows of a prefill group before any room, as one of its ranks told the bootstrap service.

    ``backend`` to ``engine_version`` are as in a pairing: the backend's and its protocol's name, pdcore's
    version, and that of the engine's library ("" if unknown). ``page_size`` is in tokens, ``dtype`` and
    ``fingerprint`` are those of the layout. Pairing compares all of it, rank by rank.
    """

    dp_size: int
    tp_size: int
    pp_size: int
    cp_size: int
    backend: str
    protocol: str
    version: str
    engine_version: str
    page_size: int
    dtype: str
    fingerprint: Fingerprint | None

    @classmethod
    def of(cls, record: RankRecord) -> PrefillFacts:
        """Return the facts of the group of a rank."""
        group = record.topology
        traits = {field.name: getattr(record.traits, field.name) for field in attrs.fields(Traits)}
        return cls(group.dp_size, group.tp_size, group.pp_size, group.cp_size, **traits)


@attrs.frozen
class RankGroup:
    """All ranks of one DP replica, ordered by unique rank."""

    ranks: tuple[RankRecord, ...]


@attrs.frozen
class RoomsRecord:
    """The prefill DP rank that took these rooms."""

    rooms: tuple[RoomId, ...]
    dp_rank: int


@attrs.frozen
class ReplicaQuery:
    """Which DP replica is asked for: one by its rank, or that of a room."""

    choice: int | DPChoice
    room: RoomId

    @property
    def parameters(self) -> dict[str, str]:
        """The query of the HTTP request."""
        if isinstance(self.choice, DPChoice):
            return {"room": str(self.room), "choice": self.choice.value}
        return {"dp_rank": str(self.choice)}

    def __str__(self) -> str:
        if isinstance(self.choice, DPChoice):
            return f"the prefill DP rank of room {self.room}"
        return f"prefill DP rank {self.choice}"
