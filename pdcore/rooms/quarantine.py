"""Pages that must not be reused yet: transfers that ended for the room but whose bytes may still land."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import attrs

from pdcore.contract.outcome import Quiescence, Transfer
from pdcore.host.process import ProcessIdentity, ProcessLife, life_of
from pdcore.model import Incarnation, PeerIdentity

__all__ = ["Quarantine", "WriteTarget"]

LOOK_AGAIN = 0.5
"""Seconds between two looks whether the process of a peer has ended."""

_log = logging.getLogger("pdcore.quarantine")


class WriteTarget(Protocol):
    """The peer that a transfer writes to."""

    @property
    def identity(self) -> PeerIdentity:
        """Who it is."""

    @property
    def process(self) -> ProcessIdentity | None:
        """Its process, if that is known."""

    @property
    def lost(self) -> bool:
        """Whether it is lost."""


@attrs.frozen(eq=False)
class _QuarantinedWrite:
    transfer: Transfer
    target: WriteTarget
    drained: Callable[[], None]
    at: float = attrs.field(factory=time.monotonic)


class Quarantine:
    """Holds transfers until the engine proves them drained, or the memory that they wrote to is gone.

    ``grace``: seconds after which a transfer to a lost peer counts as drained, unproven; None: never. Such a
    peer is ``forsaken``: it must not pair again, since it would be told that its pages are safe.
    ``is_back``: whether a peer that was lost has paired again; ``ended_elsewhere``: whether one who can see
    a process that we can't says that it has ended.
    The lock guards ``_held``, ``forsaken`` and ``_closed``; ``sweep`` is called on one thread.
    """

    def __init__(
        self,
        grace: float | None = None,
        is_back: Callable[[PeerIdentity], bool] = lambda _: False,
        ended_elsewhere: Callable[[ProcessIdentity], bool] = lambda _: False,
    ) -> None:
        self._grace, self._is_back, self._ended_elsewhere = grace, is_back, ended_elsewhere
        self._lock = threading.Lock()
        self._held: list[_QuarantinedWrite] = []
        self._closed = False
        self._look_at = 0.0
        self.forsaken: set[Incarnation] = set()

    def __len__(self) -> int:
        return len(self._held)

    def settle(self, transfer: Transfer, target: WriteTarget, drained: Callable[[], None]) -> bool:
        """Call ``drained`` now if the transfer is, else hold it until ``sweep`` finds that it is.

        Returns whether it was called.
        """
        if transfer.quiescence is not Quiescence.DRAINED:
            with self._lock:
                if not self._closed:
                    self._held.append(_QuarantinedWrite(transfer, target, drained))
                    return False
        drained()
        return True

    def sweep(self) -> None:
        """Look at every held transfer and let the drained ones go."""
        with self._lock:
            held = tuple(self._held)
        if not held:
            return
        silent = self._silent(held)
        self._release(one for one in held if one.target.identity in silent or _is_drained(one.transfer))

    def because(self, peer: PeerIdentity) -> str | None:
        """Why transfers to a peer are held; None if there is none."""
        with self._lock:
            target = next((one.target for one in self._held if one.target.identity == peer), None)
        if target is None:
            return None
        process = target.process
        if process is None:
            return "the engine cannot tell that its writes have ended"
        seen = f"and {process} lives" if process.in_sight() else f"and {process} cannot be seen from here"
        return f"the engine cannot tell that its writes have ended, {seen}"

    def release_all(self) -> None:
        """Let all go, now and later: the engine was closed, so that no byte can move any more."""
        with self._lock:
            self._closed = True
            held = tuple(self._held)
        self._release(held)

    def _silent(self, held: Iterable[_QuarantinedWrite]) -> set[PeerIdentity]:
        """Return the peers whose memory no byte can reach any more, and those whose grace is over."""
        now = time.monotonic()
        if now < self._look_at:
            return set()
        self._look_at = now + LOOK_AGAIN
        processes = {one.target.identity: one.target.process for one in held}
        # Its memory has gone with the process.
        silent = {who for who, process in processes.items() if process is not None and self._ended(process)}
        if self._grace is not None:
            late = {o.target.identity for o in held if o.target.lost and now > o.at + self._grace}
            overdue = {peer for peer in late - silent if not self._is_back(peer)}
            for peer in overdue:
                _log.warning(
                    "lost %s counts as silent, unproven: quarantine.grace of %g s is over (%s); it "
                    "cannot pair with this process again",
                    peer,
                    self._grace,
                    self.because(peer),
                )
            with self._lock:
                self.forsaken.update(peer.incarnation for peer in overdue)
            silent |= overdue
        return silent

    def _ended(self, process: ProcessIdentity) -> bool:
        life = life_of(process)
        return life is ProcessLife.ENDED or (
            life is ProcessLife.OUT_OF_SIGHT and self._ended_elsewhere(process)
        )

    def _release(self, entries: Iterable[_QuarantinedWrite]) -> None:
        for entry in entries:
            with self._lock:
                if entry not in self._held:  # another thread was first
                    continue
                self._held.remove(entry)
            try:
                entry.drained()
            except Exception:  # those after it are released all the same
                _log.exception("what a drained transfer held could not be released")


def _is_drained(transfer: Transfer) -> bool:
    try:
        transfer.poll()
        return transfer.quiescence is Quiescence.DRAINED
    except Exception:
        _log.exception("a quarantined transfer cannot tell how it stands")
        return False
