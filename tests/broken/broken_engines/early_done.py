from __future__ import annotations

import threading

from broken_engines import spec
from pdcore.backend import BackendSpec, InitEngineRequest
from pdcore.engine import Peer, TransferEngine
from pdcore.hookspecs import hookimpl
from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.outcome import Finished, Transfer
from pdcore.regions import WriteBatch


class Broken(LocalEngine):
    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        if batch.nbytes < 16 << 20:
            return super().do_write(peer, batch)
        late = threading.Timer(0.5, super().do_write, (peer, batch))
        late.daemon = True
        late.start()
        return Finished()


@hookimpl
def pd_backend() -> BackendSpec:
    return spec("broken_early_done", "says DONE while the end of a large batch is still under way")


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    return Broken(LocalOptions())
