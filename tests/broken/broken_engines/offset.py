from __future__ import annotations

import attrs
import numpy as np

from broken_engines import spec
from pdcore.backend import BackendSpec, InitEngineRequest
from pdcore.engine import Peer, TransferEngine
from pdcore.hookspecs import hookimpl
from pdcore.local.engine import LocalEngine
from pdcore.local.options import LocalOptions
from pdcore.outcome import Transfer
from pdcore.regions import WriteBatch


class Broken(LocalEngine):
    def do_write(self, peer: Peer, batch: WriteBatch) -> Transfer:
        wrong = batch.remote_offsets & ~np.uint64(7)
        return super().do_write(peer, attrs.evolve(batch, remote_offsets=wrong))


@hookimpl
def pd_backend() -> BackendSpec:
    return spec("broken_offset", "rounds target offsets down to multiples of eight")


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    return Broken(LocalOptions())
