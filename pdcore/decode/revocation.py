"""After a prefill rank was lost: proves that none of its bytes can land any more, or says why not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import attrs

from pdcore.contract.engine import TransferEngine
from pdcore.contract.outcome import Quiescence
from pdcore.host.process import ProcessIdentity, ProcessLife, life_of
from pdcore.host.sockets import Unsent
from pdcore.model import Deadline, Incarnation, PeerIdentity

__all__ = ["LostWriter", "Revocations"]

STEP = 0.25
"""Seconds after which who waits for an engine or a process looks whether it is wanted yet."""
LOOK_AGAIN = 0.01
"""Seconds between two looks at what the kernel has to send; nobody tells when that changes."""

_log = logging.getLogger("pdcore.decode")


@attrs.frozen(eq=False)
class LostWriter:
    """A prefill process that may write to this side, and who cares.

    ``holds``: whether pages are unsafe because of it. ``drained`` is called once it is proven silent.
    """

    identity: PeerIdentity
    endpoint: bytes
    process: ProcessIdentity | None
    holds: Callable[[], bool]
    drained: Callable[[], None]
    at: float = attrs.field(factory=time.monotonic)

    def __str__(self) -> str:
        return str(self.identity)


class _Vigil:
    """The thread of one lost writer, which alone sets ``because`` and ``unsent``.

    ``moot`` is set when the writer has come back, or this side closes. ``before``: an earlier one of the same
    writer, which is moot and has not ended.
    """

    def __init__(self, writer: LostWriter, run: Callable[[_Vigil], None], before: _Vigil | None) -> None:
        self.writer, self.before = writer, before
        self.because = "its engine is asked to write no more"
        self.moot = threading.Event()
        self.unsent: Unsent | None = None
        self.thread = threading.Thread(
            target=run, args=(self,), name=f"pdcore-revoke-{writer.identity.incarnation[:8]}", daemon=True
        )


class Revocations:
    """One thread ``pdcore-revoke-...`` per lost prefill rank, until it is silent or nobody cares.

    First the engine is asked to revoke it. Where it can't prove that, the end of the process is awaited;
    then its kernel must have sent what it was given, and the engine have taken in what arrived.
    Of a process that cannot be seen ``ended_elsewhere`` tells that much, if one does who can.
    ``grace``: seconds after which a lost process counts as silent, unproven; None: never.
    The lock guards ``_vigils``, and ``forsaken``, how often that was so.
    """

    def __init__(
        self,
        engine: TransferEngine,
        grace: float | None,
        ended_elsewhere: Callable[[ProcessIdentity], bool],
    ) -> None:
        self._engine, self._grace, self._ended_elsewhere = engine, grace, ended_elsewhere
        self._lock = threading.Lock()
        self._vigils: dict[Incarnation, _Vigil] = {}
        self._stopping = threading.Event()
        self.forsaken = 0

    def __len__(self) -> int:
        with self._lock:
            return sum(vigil.thread.is_alive() for vigil in self._vigils.values())

    def start(self, writer: LostWriter) -> None:
        """Begin off this thread, since it may have to wait; does nothing once closed."""
        with self._lock:
            if self._stopping.is_set():
                return
            self._vigils = {w: v for w, v in self._vigils.items() if v.thread.is_alive()}
            before = self._vigils.get(writer.identity.incarnation)
            if before is not None:
                before.moot.set()
            vigil = _Vigil(writer, self._keep, before)
            self._vigils[writer.identity.incarnation] = vigil
            vigil.thread.start()

    def finish(self, writer: Incarnation, deadline: Deadline) -> bool:
        """The writer is back: wait for the end of its revocation, if there is one; False at the deadline."""
        with self._lock:
            vigil = self._vigils.get(writer)
        if vigil is None:
            return True
        vigil.moot.set()
        vigil.thread.join(deadline.remaining())
        return not vigil.thread.is_alive()

    def because(self, writer: Incarnation) -> str | None:
        """Why a lost writer is not known to be silent; None if it isn't lost."""
        vigil = self._vigils.get(writer)
        return None if vigil is None else vigil.because

    def close(self, deadline: Deadline) -> None:
        """End all threads."""
        self._stopping.set()
        with self._lock:
            vigils = list(self._vigils.values())
        for vigil in vigils:
            vigil.moot.set()
        for vigil in vigils:
            vigil.thread.join(deadline.remaining())

    def _keep(self, vigil: _Vigil) -> None:
        writer = vigil.writer
        if vigil.before is not None:
            vigil.before.thread.join()
            vigil.before = None
        try:
            silent = self._revoked(vigil) or self._ended(vigil, self._look)
        # An adapter may raise anything; it proves nothing then.
        except Exception as error:
            _log.exception("the engine raised while revoking %s", writer)
            vigil.because = f"the engine raised when it was asked: {error!r}"
            silent = self._ended(vigil, lambda _vigil, _deadline: Quiescence.UNKNOWN)
        if silent:
            writer.drained()

    def _revoked(self, vigil: _Vigil) -> bool:
        """Whether the engine itself proves it; a writer that comes back must wait until it is through."""
        while not self._stopping.is_set():
            quiescence = self._engine.revoke(vigil.writer.endpoint, Deadline.after(STEP))
            if quiescence is not Quiescence.IN_FLIGHT:
                # An engine that does not declare that it can prove it is not believed.
                return quiescence is Quiescence.DRAINED and self._engine.capabilities.revocable
            vigil.because = (
                "writes of its engine are under way, and it doesn't go on: is that worker stopped?"
            )
        return False

    def _ended(self, vigil: _Vigil, look: Callable[[_Vigil, Deadline], Quiescence]) -> bool:
        """Whether the end of the process proves it, or the grace is over; False if nobody cares any more."""
        told = False
        while not vigil.moot.is_set() and vigil.writer.holds():
            if self._overdue(vigil.writer):
                return self._forsake(vigil)
            step = Deadline.after(STEP)
            if look(vigil, step) is Quiescence.DRAINED:
                return True
            if not told:
                told = True
                _log.warning(
                    "lost %s may still write: pages that it was to fill are unsafe until it is proven "
                    "silent, or pairs again and says that it has drained, or until this engine closes (%s)",
                    vigil.writer,
                    vigil.because,
                )
            vigil.moot.wait(step.remaining())
        return False

    def _look(self, vigil: _Vigil, deadline: Deadline) -> Quiescence:
        """Look once whether the process has ended, and all that it sent is taken in."""
        process = vigil.writer.process
        life = ProcessLife.OUT_OF_SIGHT if process is None else life_of(process, deadline)
        told = life is ProcessLife.OUT_OF_SIGHT and process is not None and self._ended_elsewhere(process)
        if process is None or not (told or life is ProcessLife.ENDED):
            vigil.because = _unproven(life, process)
            return Quiescence.IN_FLIGHT
        if not self._engine.capabilities.settles or not (told or process.shares_network()):
            vigil.because = f"{process} has ended, but {_unseen(process)}"
            return Quiescence.UNKNOWN
        vigil.unsent = vigil.unsent or Unsent()
        while not told and (left := vigil.unsent.left()):
            vigil.because = f"{process} has ended, but its kernel has bytes to send on {left} connections"
            if deadline.expired or vigil.moot.wait(LOOK_AGAIN):
                return Quiescence.IN_FLIGHT
        vigil.because = f"{process} has ended, but this side has not taken in all that it sent"
        quiescence = self._engine.settle(vigil.writer.endpoint, deadline)
        if quiescence is Quiescence.UNKNOWN:
            vigil.because = f"{process} has ended, but the engine cannot tell whether bytes are on their way"
        return quiescence

    def _overdue(self, writer: LostWriter) -> bool:
        return self._grace is not None and time.monotonic() > writer.at + self._grace

    def _forsake(self, vigil: _Vigil) -> bool:
        _log.warning(
            "lost %s counts as silent, unproven: quarantine.grace of %g s is over (%s)",
            vigil.writer,
            self._grace,
            vigil.because,
        )
        with self._lock:
            self.forsaken += 1
        return True


def _unproven(life: ProcessLife, process: ProcessIdentity | None) -> str:
    if process is None:
        return "its process is not known"
    if life is ProcessLife.LIVES:
        return f"{process} lives and may go on to write"
    return f"{process} is of another host or namespace, and nobody here can see whether it has ended"


def _unseen(process: ProcessIdentity) -> str:
    if not process.shares_network():
        return "what its kernel has still to send cannot be seen from this network namespace"
    return "this engine cannot tell whether bytes of it are on their way"
