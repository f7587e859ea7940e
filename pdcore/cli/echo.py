"""A loopback echo: one engine writes to itself, every byte is compared, and the bandwidth is told."""

from __future__ import annotations

import threading
import time

import attrs
import numpy as np

from pdcore.config.records import Config
from pdcore.contract.engine import Peer, TransferEngine
from pdcore.contract.outcome import TransferState
from pdcore.contract.regions import Region, WriteBatch
from pdcore.errors import EngineError, PDCoreError
from pdcore.host.machine import find_place
from pdcore.model import Deadline, EffectiveTransport, Role, new_incarnation
from pdcore.plan import slices, split_entries
from pdcore.selection.plugins import describe
from pdcore.selection.select import Backend

__all__ = ["Echo", "loopback_echo"]

MIB = 2**20
ROUNDS = 3
CLOSE_SECONDS = 15.0
"""How long closing the engine may take after the deadline."""


@attrs.frozen
class Echo:
    """``nbytes`` were written and compared in each round; the quickest took ``seconds``."""

    nbytes: int
    seconds: float
    transport: EffectiveTransport

    @property
    def gigabytes_per_second(self) -> float:
        """The bandwidth of the quickest round, in 10**9 bytes per second."""
        return self.nbytes / self.seconds / 1e9


def loopback_echo(backend: Backend, config: Config, deadline: Deadline, nbytes: int = 64 * MIB) -> Echo:
    """Start an engine of ``backend``, let it write ``nbytes`` bytes to itself, and close it.

    It runs in a thread of its own, which is left behind if the engine hangs in native code.

    Raises:
        EngineError: it did not end before the deadline, or other bytes arrived than were sent.
        KVTransferError: the engine says that a write failed.
        PDCoreError: the engine does not start, is not on ``require_transport``, or does not connect.
    """
    run = _EchoRun(backend, config, deadline, nbytes)
    thread = threading.Thread(target=run, name=f"pdcore-echo-{backend.name}", daemon=True)
    thread.start()
    thread.join(deadline.remaining() + CLOSE_SECONDS)
    if run.error is not None:
        raise run.error
    if run.echo is None:
        raise EngineError(
            f"the loopback echo of {backend.name!r} hangs",
            f"{run.step} has not ended",
            "look at the engine's log, and at what holds its ports or devices",
        )
    return run.echo


class _EchoRun:
    """One echo; ``step`` is what it is at."""

    def __init__(self, backend: Backend, config: Config, deadline: Deadline, nbytes: int) -> None:
        self.step = "starting the engine"
        self.echo: Echo | None = None
        self.error: PDCoreError | None = None
        self._backend, self._config, self._deadline, self._nbytes = backend, config, deadline, nbytes

    def __call__(self) -> None:
        try:
            engine = self._backend.start_engine(
                role=Role.PREFILL,
                incarnation=new_incarnation(),
                host=find_place(self._config.host, self._config.advertise).advertised,
                deadline=self._deadline.within(self._config.timeouts.engine_start),
                require_transport=self._config.require_transport,
            )
            try:
                echo = self._measure(engine)
                self.step = "closing the engine"
            finally:
                engine.close()
        except PDCoreError as error:
            self.error = error
        except Exception as error:
            self.error = EngineError(
                f"the engine of {self._backend.name!r} raised what no engine should",
                f"{describe(error)}, while {self.step}",
                f"report it to the authors of {self._backend.distribution}",
            )
        else:
            self.echo = echo

    def _measure(self, engine: TransferEngine) -> Echo:
        self.step = "registering memory"
        source, target = np.zeros(self._nbytes, np.uint8), np.ones(self._nbytes, np.uint8)
        export = engine.register([Region.of("echo.source", source), Region.of("echo.target", target)])
        self.step = "connecting to itself"
        engine.admit(engine.endpoint())
        peer = engine.connect(engine.endpoint(), export, self._deadline)
        limits = engine.capabilities
        whole = WriteBatch.of(0, 1, [0], [0], [self._nbytes])
        batch = split_entries(whole, min(MIB, limits.max_entry_bytes or MIB))
        pieces = list(slices(batch, limits.max_outstanding_entries))
        seconds = []
        for number in range(ROUNDS):
            self.step = f"writing, round {number + 1} of {ROUNDS}"
            source[:] = np.frombuffer(np.random.default_rng(number).bytes(self._nbytes), np.uint8)
            start = time.monotonic()
            for piece in pieces:
                self._write(engine, peer, piece)
            seconds.append(time.monotonic() - start)
            wrong = np.flatnonzero(source != target)
            if len(wrong):
                raise EngineError(
                    f"the loopback echo of {self._backend.name!r} brought other bytes than were sent",
                    f"{len(wrong)} of {self._nbytes} bytes differ, the first at {int(wrong[0])}",
                    "do not use this backend here: it says that all was written",
                )
        engine.disconnect(peer)
        return Echo(self._nbytes, min(seconds), engine.effective_transport)

    def _write(self, engine: TransferEngine, peer: Peer, piece: WriteBatch) -> None:
        transfer = engine.write(peer, piece)
        if transfer.wait(self._deadline) is TransferState.DONE:
            return
        raise transfer.error or EngineError(
            f"a write of the loopback echo of {self._backend.name!r} did not end before its deadline",
            f"{piece.nbytes} bytes in {len(piece)} entries are still pending",
            "look at the engine's log",
        )
