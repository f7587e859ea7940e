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
        limits = np.repeat(peer.region_lengths[batch.remote_regions], np.diff(batch.starts))
        at_end = (batch.remote_offsets + batch.lengths == limits).astype(np.uint64)
        return super().do_write(peer, attrs.evolve(batch, lengths=batch.lengths + at_end))


@hookimpl
def pd_backend() -> BackendSpec:
    return spec("broken_past_region", "copies one byte more than it was told to where a region ends")


@hookimpl
def pd_init_engine(request: InitEngineRequest) -> TransferEngine:
    return Broken(LocalOptions())
