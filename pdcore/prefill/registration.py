"""One prefill rank at its bootstrap service: announced, renewed as long as it lives, and withdrawn."""

from __future__ import annotations

import logging
import math
import time
from enum import Enum

import attrs

from pdcore.bootstrap import BootstrapClient, RankRecord, RoomsRecord
from pdcore.bootstrap.attempts import reason_of
from pdcore.bootstrap.record import Traits
from pdcore.config.records import Config
from pdcore.errors import PDCoreError
from pdcore.events import Events, Stage, StageEnded, stage
from pdcore.model import Deadline
from pdcore.pairing.description import PeerDescription

__all__ = ["Announce", "Registration"]

RETRY = 0.2
"""Seconds until the second attempt to announce; each further one waits twice as long, up to the interval."""
LAST_ATTEMPT = 1.0
"""Seconds that the end waits at most for a service that has never answered."""

_log = logging.getLogger("pdcore.prefill")


class Announce(Enum):
    """What a manager does while its bootstrap service is not there: wait for it, or start without."""

    WAIT = "wait"
    BACKGROUND = "background"


@attrs.frozen
class _State:
    """How it stands: when it was last told to the service, and what came of the last attempt since."""

    renewed_at: float | None = None
    failure: str = ""
    refused: bool = False


def traits_of(ours: PeerDescription) -> Traits:
    """Return what decode may know before it pairs."""
    layout = ours.layout
    return Traits(
        ours.backend,
        ours.protocol,
        ours.version,
        ours.engine_version,
        layout.page_size,
        layout.dtype,
        layout.fingerprint,
    )


class Registration:
    """Keeps one rank registered. Owns the client, and with it the thread ``pdcore-prefill-http``.

    ``_state`` is replaced as a whole, by the client's thread once the rank is announced. The control thread
    alone calls ``tick``; all else is for any thread.
    """

    def __init__(self, bootstrap: str, ours: PeerDescription, config: Config, events: Events) -> None:
        self.bootstrap = bootstrap
        self._interval, self._events = config.liveness.interval, events
        self._record = RankRecord(
            ours.incarnation,
            ours.address,
            ours.topology,
            self._interval * config.liveness.max_failures,
            traits_of(ours),
        )
        self._client = BootstrapClient("prefill", config.auth_key, pause=math.inf)
        self._state = _State()
        self._began = time.monotonic()
        self._due = math.inf  # nothing is renewed before it is announced
        self._pause = RETRY

    @property
    def registered(self) -> bool:
        """Whether the service knows this rank, as far as it said."""
        state = self._state
        return self._held(state) and not state.refused

    def announce(self, how: Announce, deadline: Deadline) -> None:
        """Register: wait for that until the deadline, or have it done in the background by ``tick``.

        Raises:
            BootstrapError, AuthenticationError: it was waited for, and is not registered.
        """
        self._began = time.monotonic()
        if how is Announce.WAIT:
            with stage(self._events, Stage.ANNOUNCE):
                self._client.register(self.bootstrap, self._record, deadline)
            self._state = _State(renewed_at=self._began)
            self._due = time.monotonic() + self._interval
        else:
            self._due = self._began

    def tick(self, now: float) -> None:
        """Announce or renew if that is due; never waits."""
        if now < self._due:
            return
        if self._state.renewed_at is None:
            self._due, self._pause = now + min(self._pause, self._interval), self._pause * 2
        else:
            self._due = now + self._interval
        self._client.renew(self.bootstrap, self._record, lambda error: self._heard(now, error))

    def problems(self) -> tuple[str, ...]:
        """Return why decode may not find this rank."""
        state, where = self._state, self.bootstrap
        why = state.failure if state.refused else self._client.trouble(where)
        if state.renewed_at is None:
            return (f"not registered at {where}: {why or 'it has not answered yet'}",)
        if state.refused:
            return (f"not renewed at {where}: {why}",)
        if not self._held(state):
            ago = time.monotonic() - state.renewed_at
            there_is = f"last renewed {ago:.1f} s ago, for {self._record.lease:g} s"
            return (f"the lease at {where} has run out: {why or there_is}",)
        return ()

    def took(self, rooms: RoomsRecord, seconds: float) -> None:
        """Start telling which DP rank took some rooms, and try again for so many seconds; never waits."""
        self._client.register_rooms(self.bootstrap, rooms, seconds)

    def leave(self, deadline: Deadline) -> None:
        """Withdraw, and end the client; at once if no service has ever answered."""
        seconds = deadline.remaining()
        if self._state.renewed_at is None:
            seconds = min(LAST_ATTEMPT, seconds)
        self._client.withdraw(self.bootstrap, self._record.incarnation, Deadline.after(seconds))
        self._client.close(deadline)

    def _held(self, state: _State) -> bool:
        return state.renewed_at is not None and time.monotonic() - state.renewed_at <= self._record.lease

    def _heard(self, asked_at: float, error: Exception | None) -> None:
        """Take what came of an attempt, on the client's thread. A failure is told once, until another."""
        before = self._state
        if error is None:
            self._state = _State(renewed_at=asked_at)
            if before.renewed_at is None or before.failure:
                _log.info("registered at the bootstrap service %s", self.bootstrap)
            if before.renewed_at is None:
                self._tell(None)
            return
        refused = isinstance(error, PDCoreError)
        why = f"{error.happened}: {error.there_is}" if isinstance(error, PDCoreError) else reason_of(error)
        self._state = _State(before.renewed_at, why, refused)
        if why != before.failure:
            known = before.renewed_at is not None
            what = "could not renew the lease" if known else "not registered yet"
            _log.warning("%s at the bootstrap service %s, trying again: %s", what, self.bootstrap, why)
            if refused:
                self._tell(error)

    def _tell(self, error: BaseException | None) -> None:
        if self._events.on:
            seconds = time.monotonic() - self._began
            self._events.emit(StageEnded(self._events.node, Stage.ANNOUNCE, seconds, error, None, None))
