"""Every error that pdcore raises: each says what happened, what there is, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import attrs

__all__ = [
    "AddressError",
    "ArgumentError",
    "AuthenticationError",
    "BootstrapError",
    "ConfigError",
    "ConfigProblem",
    "ContractError",
    "EngineClosedError",
    "EngineError",
    "FailureCode",
    "ForkedError",
    "IncompatiblePeerError",
    "KVTransferError",
    "LayoutError",
    "Misfit",
    "MissingExtraError",
    "PDCoreError",
    "PlanError",
    "PluginError",
    "RegistrationError",
    "RoomError",
    "SelectionError",
    "SelectionRow",
    "TelemetryError",
    "TransportMismatchError",
    "VariantConflictError",
    "WireError",
    "one_line",
]


class PDCoreError(Exception):
    """Base of all errors of pdcore.

    The three parts are the interface: ``happened`` (one clause), ``there_is`` (the facts on the
    ground: values, candidates, limits) and ``to_do`` (a command or a change that helps).
    """

    def __init__(self, happened: str, there_is: str, to_do: str) -> None:
        super().__init__(happened, there_is, to_do)
        self.happened = happened
        self.there_is = there_is
        self.to_do = to_do

    def __str__(self) -> str:
        return f"{self.happened}\n  there is: {self.there_is}\n  to do: {self.to_do}"


class ArgumentError(PDCoreError, ValueError):
    """A call was handed a value of another kind than is due, such as seconds where a deadline belongs."""


@attrs.frozen
class ConfigProblem:
    """One wrong value: its path (``transfer.lanes_per_peer``), where it came from, and why."""

    path: str
    origin: str
    reason: str


class ConfigError(PDCoreError):
    """One or more configuration values are wrong; all of them are listed."""

    def __init__(self, problems: Sequence[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        lines = "".join(f"\n    {p.path} (from {p.origin}): {p.reason}" for p in self.problems)
        count = len(self.problems)
        super().__init__(
            f"the configuration has {count} wrong value{'s' if count != 1 else ''}",
            lines.lstrip("\n ") if count == 1 else lines,
            "correct each value where it was set",
        )

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[ConfigProblem, ...]]]:
        return ConfigError, (self.problems,)


class ContractError(PDCoreError):
    """A plugin broke the hook contract (wrong type returned, undeclared variant, ...)."""


class PluginError(PDCoreError):
    """A plugin could not be imported or registered; it never stops the others."""


@attrs.frozen
class SelectionRow:
    """One candidate of a selection: its name, distribution, and the reason why not (or ready)."""

    name: str
    distribution: str
    verdict: str


class SelectionError(PDCoreError):
    """The named backend cannot be used; carries every candidate with its verdict as data.

    ``more`` is the command that tells more than the message.
    """

    def __init__(self, happened: str, rows: Sequence[SelectionRow], to_do: str, more: str) -> None:
        self.rows = tuple(rows)
        self.more = more
        name_width = max((len(r.name) for r in self.rows), default=0)
        dist_width = max((len(r.distribution) for r in self.rows), default=0)
        table = "\n".join(
            f"  {r.name:<{name_width}}  {r.distribution:<{dist_width}}   {r.verdict}" for r in self.rows
        )
        super().__init__(happened, table or "  (no backend is installed)", to_do)

    def __str__(self) -> str:
        return f"{self.happened}\n{self.there_is}\n  fix: {self.to_do}        more: {self.more}"

    def __reduce__(
        self,
    ) -> tuple[type[SelectionError], tuple[str, tuple[SelectionRow, ...], str, str]]:
        return type(self), (self.happened, self.rows, self.to_do, self.more)


class VariantConflictError(PDCoreError):
    """A variant and the user's environment or options want different things."""


class TransportMismatchError(PDCoreError):
    """The engine started, but not on the transport that ``require_transport`` asks for."""


class EngineError(PDCoreError):
    """A transfer engine refused or failed; the native error was mapped at the border."""


class RegistrationError(EngineError):
    """A memory region could not be registered; the message names the region."""


class EngineClosedError(EngineError):
    """The engine was used after ``close()``, before ``register()``, or from a forked child."""


class ForkedError(PDCoreError):
    """An object of another process was used in a child forked from it, where only ``close`` may be called."""


class LayoutError(PDCoreError):
    """A memory layout, state component or aux schema contradicts itself or its buffers."""


class PlanError(PDCoreError):
    """A copy plan would leave a region, or its index lists do not match."""


class MissingExtraError(PDCoreError):
    """An optional part of pdcore was imported, and the library that it needs is not installed."""


class TelemetryError(PDCoreError):
    """An exporter cannot be set up beside what is there already."""


class WireError(PDCoreError):
    """A control message is malformed, oversized, or of a version this pdcore does not speak."""


class BootstrapError(PDCoreError):
    """The bootstrap service could not be started, reached, or does not know a rank."""


class AddressError(BootstrapError):
    """What was handed in as a host or an address cannot be one, or is none of this machine."""


class AuthenticationError(PDCoreError):
    """The other side requires a key, has none, or has another one; or a code is wrong."""


class RoomError(PDCoreError):
    """A sender or receiver was called out of order or with values that contradict its room."""


@attrs.frozen
class Misfit:
    """One field in which two peers differ, with both values and what to change."""

    field: str
    prefill: str
    decode: str
    change: str


class IncompatiblePeerError(PDCoreError):
    """Prefill and decode cannot be paired; every differing field is listed."""

    def __init__(self, peer: str, misfits: Sequence[Misfit]) -> None:
        self.peer = peer
        self.misfits = tuple(misfits)
        lines = "".join(f"\n    {m.field}: prefill {m.prefill}, decode {m.decode}" for m in self.misfits)
        super().__init__(
            f"cannot pair with {peer}: {len(self.misfits)} field(s) differ",
            lines,
            "; ".join(dict.fromkeys(m.change for m in self.misfits)),
        )

    def __reduce__(self) -> tuple[type[IncompatiblePeerError], tuple[str, tuple[Misfit, ...]]]:
        return IncompatiblePeerError, (self.peer, self.misfits)


class FailureCode(Enum):
    """Why a room failed. The value is what travels on the wire.

    ``DECLINED``: decode has no use for the room, so that nothing went wrong. ``REFUSED``: a call of the
    scheduler was refused, and may not raise.
    """

    ABORTED = "aborted"
    AUX = "aux"
    DEADLINE = "deadline"
    DECLINED = "declined"
    ENGINE = "engine"
    INCOMPATIBLE = "incompatible"
    INTEGRITY = "integrity"
    PEER_LOST = "peer_lost"
    PLAN = "plan"
    REFUSED = "refused"
    SHUTDOWN = "shutdown"
    UNAUTHENTICATED = "unauthenticated"

    @property
    def is_error(self) -> bool:
        """Whether something went wrong."""
        return self is not FailureCode.DECLINED


class KVTransferError(PDCoreError):
    """A room ended as FAILED. ``code`` says which kind, the three parts say why."""

    def __init__(self, code: FailureCode, happened: str, there_is: str, to_do: str) -> None:
        super().__init__(happened, there_is, to_do)
        self.code = code

    @classmethod
    def of(cls, error: PDCoreError) -> KVTransferError:
        """Return an error as the failure of a room, with the code of its kind; ``ENGINE`` is what is left."""
        if isinstance(error, KVTransferError):
            return error
        code = next((code for kind, code in _CODES if isinstance(error, kind)), FailureCode.ENGINE)
        return cls(code, error.happened, error.there_is, error.to_do)

    def __reduce__(self) -> tuple[type[KVTransferError], tuple[FailureCode, str, str, str]]:
        return KVTransferError, (self.code, self.happened, self.there_is, self.to_do)


_CODES = (
    (PlanError, FailureCode.PLAN),
    (IncompatiblePeerError, FailureCode.INCOMPATIBLE),
    (AuthenticationError, FailureCode.UNAUTHENTICATED),
    (ArgumentError, FailureCode.REFUSED),
    (AddressError, FailureCode.REFUSED),
    (RoomError, FailureCode.REFUSED),
    (ForkedError, FailureCode.REFUSED),
)


def one_line(error: BaseException) -> str:
    """Return an error as one line, for a log or an answer: all parts if it is pdcore's, else its repr."""
    parts = str(error).splitlines() if isinstance(error, PDCoreError) else [repr(error)]
    return "; ".join(" ".join(part.split()) for part in parts)
