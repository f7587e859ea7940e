"""What decode knows of prefill groups before any room: asked for once, then looked up."""

from __future__ import annotations

import concurrent.futures
import math
import threading
from collections.abc import Callable, Iterable
from functools import partial

import attrs

from pdcore.bootstrap import BootstrapClient, PrefillFacts, RankRecord
from pdcore.errors import AuthenticationError, EngineError, FailureCode, KVTransferError, PDCoreError
from pdcore.host.address import parse_address
from pdcore.host.shortage import require_descriptors
from pdcore.model import Clock, Deadline

__all__ = ["KnownGroups", "as_failure"]

MOST = 1024
"""Addresses that are remembered; the one that was asked about first is forgotten."""
MOMENT = 1.0
"""Seconds until one that was not reached is asked again, and that a service may wait for a first rank."""
LONGEST = 3600.0
DESCRIPTORS = 8
"""What a connection to a service takes, with what looks its name up."""


@attrs.define(eq=False)
class _KnownGroup:
    """What is known of the group at one address: ``answer``, which is asked for again from ``ask_at`` on.

    Facts that could not be asked for again are believed until ``until``. ``asking`` while that is under way.
    """

    answer: PrefillFacts | KVTransferError | None = None
    until: float = -math.inf
    ask_at: float = -math.inf
    asking: bool = False


class KnownGroups:
    """Prefill groups by bootstrap address.

    The lock guards ``_known`` and what is in it; a look-up that finds nothing due takes none. ``paired``
    tells whether this side is paired with a group of an address: then its facts hold without asking.
    """

    def __init__(
        self, client: BootstrapClient, seconds: float, clock: Clock, paired: Callable[[str], bool]
    ) -> None:
        self._client, self._seconds, self._clock, self._paired = client, seconds, clock, paired
        self._lock = threading.Lock()
        self._known: dict[str, _KnownGroup] = {}

    def of(self, bootstrap: object) -> PrefillFacts | KVTransferError | None:
        """Return the facts of a group, why they cannot be had, or None: they are asked for. Never waits."""
        try:
            address = self._in_one_form(bootstrap)
        except PDCoreError as error:
            return KVTransferError.of(error)
        group = self._known.get(address)
        if group is not None and (group.asking or self._clock() < group.ask_at):
            return self._told(group)
        paired = self._paired(address)
        with self._lock:
            group = self._known.get(address)
            if group is None:
                while len(self._known) >= MOST:
                    del self._known[next(iter(self._known))]
                group = self._known[address] = _KnownGroup()
            now = self._clock()
            if group.asking or now < group.ask_at:
                return self._told(group)
            if paired and isinstance(group.answer, PrefillFacts):
                group.ask_at = now + MOMENT
                group.until = max(group.until, group.ask_at + MOMENT)
                return group.answer
            group.asking = True
        self._ask(address, group)
        return self._told(group)

    def drop(self, addresses: Iterable[str]) -> None:
        """Forget what is known of groups: they were lost, or others are there now."""
        with self._lock:
            for address in addresses:
                self._known.pop(address, None)

    def addresses(self) -> set[str]:
        """Return the addresses that were asked."""
        with self._lock:
            return set(self._known)

    def _in_one_form(self, bootstrap: object) -> str:
        if isinstance(bootstrap, str) and bootstrap in self._known:  # what is known is not parsed again
            return bootstrap
        return str(parse_address(bootstrap, "the address of the bootstrap service"))

    def _told(self, group: _KnownGroup) -> PrefillFacts | KVTransferError | None:
        answer = group.answer
        if isinstance(answer, PrefillFacts) and group.until < self._clock():
            return None
        return answer

    def _ask(self, address: str, group: _KnownGroup) -> None:
        wait = min(MOMENT, self._seconds / 2)
        try:
            require_descriptors(DESCRIPTORS, f"to ask for prefill at {address}")
            future = self._client.any_rank(address, wait, Deadline.after(self._seconds))
        except EngineError as shortage:
            future = concurrent.futures.Future()
            future.set_exception(shortage)
        future.add_done_callback(partial(self._answered, group))

    def _answered(self, group: _KnownGroup, future: concurrent.futures.Future[RankRecord]) -> None:
        """Take an answer, as a rule on the client's thread; one that was dropped meanwhile, nobody reads."""
        if future.cancelled():
            return
        error, now = future.exception(), self._clock()
        with self._lock:
            group.asking = False
            group.ask_at = now + MOMENT
            if error is None:
                record = future.result()
                lease = min(max(2 * MOMENT, record.lease), LONGEST)
                group.answer = PrefillFacts.of(record)
                group.ask_at, group.until = now + lease / 2, now + lease
            elif not isinstance(group.answer, PrefillFacts) or group.until < now:
                code = FailureCode.ENGINE if isinstance(error, EngineError) else FailureCode.PEER_LOST
                group.answer = as_failure(code, error)


def as_failure(code: FailureCode, error: BaseException) -> KVTransferError:
    """Return an error of the pairing as a room's failure."""
    if isinstance(error, KVTransferError):
        return error
    if isinstance(error, AuthenticationError):
        code = FailureCode.UNAUTHENTICATED
    if isinstance(error, PDCoreError):
        return KVTransferError(code, error.happened, error.there_is, error.to_do)
    return KVTransferError(code, "pairing with prefill failed", repr(error), "look at both sides' logs")
