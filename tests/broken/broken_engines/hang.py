from __future__ import annotations

import threading

from broken_engines import spec
from pdcore.backend import BackendSpec, InitEngineRequest
from pdcore.engine import Peer, TransferEngine
from pdcore.hookspecs import hookimpl
from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.model import Deadline, Role
from pdcore.outcome import Quiescence, Transfer, TransferState
from pdcore.regions import WriteBatch


class Endless(Transfer):
    quiescence = Quiescence.UNKNOWN

    def poll(self) -> TransferState:
        return TransferState.PENDING

    def wait(self, deadline: Deadline) -> TransferState:
        threading.Event().wait(deadline.remaining())
        return TransferState.PENDING


class Broken(LocalEngine):
    def __init__(self, role: Role) -> None:
        super().__init__(LocalOptions())
        self.role = role

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        transfer = super().do_write(peer, batch)
        failed = transfer.poll() is TransferState.FAILED
        return Endless() if failed and self.role is Role.PREFILL and not self._closed else transfer


@hookimpl
def pd_backend() -> BackendSpec:
    return spec("broken_hang", "never ends a write that cannot succeed")


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    return Broken(request.role)
