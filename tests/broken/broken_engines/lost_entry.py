from __future__ import annotations

from broken_engines import spec
from pdcore.backend import BackendSpec, InitEngineRequest
from pdcore.engine import Peer, TransferEngine
from pdcore.hookspecs import hookimpl
from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.outcome import Transfer
from pdcore.plan.split import slices
from pdcore.regions import WriteBatch


class Broken(LocalEngine):
    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        kept = len(batch) - 1 if len(batch) > 1000 else len(batch)
        return super().do_write(peer, next(slices(batch, kept)))


@hookimpl
def pd_backend() -> BackendSpec:
    return spec("broken_lost_entry", "forgets the last entry of batches of more than a thousand")


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    return Broken(LocalOptions())
