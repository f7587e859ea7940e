from __future__ import annotations

import contextlib
import threading

from broken_engines import spec
from pdcore.backend import BackendSpec, InitEngineRequest
from pdcore.engine import Peer, RawWrite, TransferEngine
from pdcore.hookspecs import hookimpl
from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.model import Role
from pdcore.outcome import Transfer, TransferState
from pdcore.regions import WriteBatch


class Broken(LocalEngine):
    def __init__(self, role: Role) -> None:
        super().__init__(LocalOptions())
        self.role = role
        self.haunting = False
        self.gone = threading.Event()

    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        transfer = super().do_write(peer, batch)
        tempting = batch.nbytes >= 1 << 20 or transfer.poll() is TransferState.FAILED
        if tempting and self.role is Role.PREFILL and not self.haunting:
            self.haunting = True
            ghost = threading.Thread(target=self.haunt, args=(self.prepare_raw(peer, batch),), daemon=True)
            ghost.start()
        return transfer

    def haunt(self, raw: RawWrite) -> None:
        with contextlib.suppress(OSError):
            while not self.gone.wait(0.1):
                raw()

    def do_close(self) -> None:
        self.gone.set()
        super().do_close()


@hookimpl
def pd_backend() -> BackendSpec:
    return spec("broken_ghost_write", "writes one batch of every engine again and again")


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    return Broken(request.role)
