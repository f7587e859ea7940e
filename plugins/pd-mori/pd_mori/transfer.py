"""A batch under way: the statuses that MORI writes to, each kept until it is terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from pd_mori.library import EngineDesc, MemoryDesc, NativeEngine, Status
from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.errors import FailureCode, KVTransferError
from pdcore.model import Deadline

__all__ = ["Flights", "MoriTransfer", "Remote", "Request"]

Request = tuple[MemoryDesc, list[int], MemoryDesc, list[int], list[int]]
"""Local memory and offsets, remote memory and offsets, lengths: one status covers all of it."""
LONGEST_WAIT_MS = 60_000
STARTED_NOTHING = ("INIT", "ERR_INVALID_ARGS", "ERR_NOT_FOUND", "ERR_BAD_STATE")
"""The codes by which MORI says that no byte of a request can move."""
RESTART = "MORI rebuilds no queue pair: send to another worker, and restart this one if it still runs"


class Remote:
    """A peer's engine, for all connections to it. ``lost`` is MORI's reason why it is written to no more.

    ``astray``: a write to it failed, of which bytes may still land; until it is ``gone``, its control port
    closed, and nothing left there that they could land in.
    """

    def __init__(self, desc: EngineDesc) -> None:
        self.desc = desc
        self.users = 0
        self.lost = ""
        self.astray = False
        self.gone = False

    def lose(self, reason: str) -> None:
        """Write to it no more; the first reason stays."""
        self.lost = self.lost or reason

    def failure(self, code: FailureCode, there_is: str) -> KVTransferError:
        """Return the error of a write to it."""
        return KVTransferError(code, f"MORI failed to write to engine {self.desc.key[:8]}", there_is, RESTART)


class Flights:
    """The transfers that MORI may still write to, of one engine. The lock guards ``_held`` and ``_shut``.

    A status that is dropped too early is a place in memory that MORI writes to later: so they are held
    here whatever becomes of the request.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[MoriTransfer, None] = {}
        self._shut = False

    def __len__(self) -> int:
        return len(self._held)

    def admit(self, transfer: MoriTransfer) -> bool:
        """Hold a transfer from before it is posted; False if none is taken any more."""
        with self._lock:
            if self._shut:
                return False
            oldest = next(iter(self._held), None)
            self._held[transfer] = None
        if oldest is not None:
            oldest.poll()  # nobody else may look at one that was given up
        return True

    def landed(self, transfer: MoriTransfer) -> None:
        """Let go of a transfer whose statuses are all terminal."""
        with self._lock:
            self._held.pop(transfer, None)

    def reach(self, remote: Remote) -> bool:
        """Whether one of them goes to a remote."""
        with self._lock:
            return any(transfer.remote is remote for transfer in self._held)

    def settle(self, deadline: Deadline, *, shut: bool = False) -> bool:
        """Wait for all that are held, and take no more if ``shut``; return whether all ended in time."""
        with self._lock:
            held, self._shut = list(self._held), self._shut or shut
        states = [transfer.wait(deadline) for transfer in held]
        return TransferState.PENDING not in states


class MoriTransfer(Transfer):
    """One batch. The lock guards ``_open`` once all has been posted."""

    def __init__(self, remote: Remote, flights: Flights) -> None:
        self.remote = remote
        self._flights = flights
        self._posted = threading.Event()
        self._lock = threading.Lock()
        self._open: list[Status] = []
        self._astray = False

    def post(self, engine: NativeEngine, requests: Iterable[Request]) -> str:
        """Start the requests, one MORI call each; return MORI's reason if it broke off, else "".

        A call of several would lose the statuses of those before the one that raises.
        """
        try:
            for local, here, remote, there, sizes in requests:
                uid = engine.allocate_transfer_uid()
                self._open += engine.batch_write([local], [here], [remote], [there], [sizes], [uid])
        except RuntimeError as error:  # the control plane: nothing of this request was started
            self.error = self.remote.failure(FailureCode.PEER_LOST, f"{error}")
            return str(error)
        finally:
            self._posted.set()
        return ""

    def poll(self) -> TransferState:
        if not self._posted.is_set():
            return TransferState.PENDING
        with self._lock:
            if self._open:
                self._open = [status for status in self._open if not self._ended(status)]
                if self._open:
                    return TransferState.PENDING
        self._flights.landed(self)
        return TransferState.FAILED if self.error else TransferState.DONE

    def wait(self, deadline: Deadline) -> TransferState:
        if not self._posted.wait(deadline.remaining()):
            return TransferState.PENDING
        while (state := self.poll()) is TransferState.PENDING and not deadline.expired:
            for status in self._open[:1]:
                status.WaitFor(min(int(deadline.remaining() * 1000) + 1, LONGEST_WAIT_MS))
        return state

    @property
    def quiescence(self) -> Quiescence:
        # A status fails with the first of its work requests; the others may still be landing.
        unsettled = self._open or not self._posted.is_set() or (self._astray and not self.remote.gone)
        return Quiescence.IN_FLIGHT if unsettled else Quiescence.DRAINED

    def _ended(self, status: Status) -> bool:
        if status.InProgress():
            return False
        if not status.Succeeded():
            self._fail(status.Code().name, status.Message())
        return True

    def _fail(self, code: str, message: str) -> None:
        lost = code == "ERR_RDMA_OP"
        there_is = f"{code}: {message or 'MORI never started it'}"
        self._astray |= code not in STARTED_NOTHING
        self.remote.astray |= self._astray
        kind = FailureCode.PEER_LOST if lost else FailureCode.ENGINE
        self.error = self.error or self.remote.failure(kind, there_is)
        if lost:
            self.remote.lose(there_is)
