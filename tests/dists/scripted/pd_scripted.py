"""A backend with tight limits, whose writes a test can hold back, fail, or have raise.

It copies with the engine of ``local``: the bytes are real, only their moment is the test's.
"""

from __future__ import annotations

import threading
from functools import partial

import attrs

from pdcore.contract.backend import BackendSpec, InitEngineRequest, StateCopier, StatePlan, StateRequest
from pdcore.contract.engine import EngineCapabilities, Peer, TransferEngine
from pdcore.contract.hookspecs import hookimpl
from pdcore.contract.outcome import Quiescence, Transfer, TransferState
from pdcore.contract.regions import WriteBatch
from pdcore.errors import EngineError, FailureCode, KVTransferError
from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.model import Deadline
from pdcore.plan import plan_state

LIMITS = EngineCapabilities(
    max_outstanding_entries=10, max_entry_bytes=300, asynchronous=True, revocable=True
)


@attrs.define
class Script:
    """What the next writes do, and what was seen."""

    hold: bool = False
    fail: bool = False
    explode: bool = False
    refuse_to_close: bool = False
    outstanding: int = 0
    most_outstanding: int = 0
    longest_entry: int = 0
    calls: int = 0
    held: list[HeldWrite] = attrs.field(factory=list)

    def reset(self) -> None:
        """Begin anew."""
        self.hold = self.fail = self.explode = self.refuse_to_close = False
        self.outstanding = self.most_outstanding = self.longest_entry = self.calls = 0
        self.held.clear()


script = Script()


class HeldWrite(Transfer):
    """A write that happens when it is let go."""

    def __init__(self, engine: ScriptedEngine, peer: Peer, batch: WriteBatch) -> None:
        self._go = partial(engine.copy, peer, batch)
        self._entries = len(batch)
        self._state = TransferState.PENDING
        self._quiescence = Quiescence.IN_FLIGHT
        self._ended = threading.Event()
        script.outstanding += len(batch)
        script.most_outstanding = max(script.most_outstanding, script.outstanding)

    def let_go(self) -> None:
        """Copy, and be done."""
        self._go()
        self._end(TransferState.DONE)
        self.drain()

    def fail(self) -> None:
        """End as FAILED with bytes still under way."""
        self.error = KVTransferError(FailureCode.ENGINE, "the script failed it", "fail is set", "nothing")
        self._end(TransferState.FAILED)

    def drain(self) -> None:
        """Prove that no byte moves any more."""
        self._quiescence = Quiescence.DRAINED

    def _end(self, state: TransferState) -> None:
        script.outstanding -= self._entries
        self._state = state
        self._ended.set()

    def poll(self) -> TransferState:
        return self._state

    def wait(self, deadline: Deadline) -> TransferState:
        self._ended.wait(deadline.remaining())
        return self._state

    @property
    def quiescence(self) -> Quiescence:
        return self._quiescence


class ScriptedEngine(LocalEngine):
    """The engine of ``local`` under a script."""

    def __init__(self) -> None:
        super().__init__(LocalOptions())
        self.capabilities = LIMITS

    def copy(self, peer: Peer, batch: WriteBatch) -> None:
        """Copy now, in this thread."""
        self.capabilities = attrs.evolve(LIMITS, asynchronous=False)
        done = super().do_write(peer, batch)
        self.capabilities = LIMITS
        assert done.poll() is TransferState.DONE, done.error

    def do_close(self) -> None:
        super().do_close()
        if script.refuse_to_close:
            raise EngineError("close cannot prove that no byte moves any more", "the script", "nothing")

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        if script.explode:
            raise RuntimeError("the script has it raise")
        script.calls += 1
        script.longest_entry = max(script.longest_entry, int(batch.lengths.max()))
        write = HeldWrite(self, peer, batch)
        if script.fail:
            write.fail()
        if script.hold or script.fail:
            script.held.append(write)
        else:
            write.let_go()
        return write


def swapped(request: StateRequest) -> StateCopier:
    """Return a plan of its own: item ``i`` goes to where item ``i`` counted from the end is wanted."""
    copy = plan_state(request).copier
    assert copy is not None
    return lambda local, remote: copy(local, remote[::-1].copy())


def absurd(request: StateRequest) -> StateCopier:
    """Return a plan that leaves every region."""
    local, remote = request.local_regions[0], request.remote_regions[0]
    return lambda _here, _there: WriteBatch.of(local, remote, [0], [0], [2**60])


@hookimpl
def pd_transfer_state(request: StateRequest) -> StatePlan | None:
    kind = request.local.kind
    if kind == "swapped":
        return StatePlan(swapped(request))
    if kind == "absurd":
        return StatePlan(absurd(request))
    return StatePlan(refusal="it is not for this backend") if kind == "refused" else None


@hookimpl
def pd_backend() -> BackendSpec:
    return BackendSpec("scripted", "does as told", "tests", ("copy",), LIMITS)


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    return ScriptedEngine()
