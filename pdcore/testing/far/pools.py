"""What the prefill and the decode worker of a conformance test have in common."""

from __future__ import annotations

from typing import Literal

import numpy as np

from pdcore.config.records import Config, LivenessConfig, Timeouts, TransferConfig, TransferModel
from pdcore.layout.aux_schema import AuxField, AuxSchema
from pdcore.layout.kv import KVLayout
from pdcore.memory.metadata_buffers import MetadataBuffers
from pdcore.memory.pools import Pools

__all__ = ["FAR_POOL_SEED", "NEAR_POOL_SEED", "NUM_PAGES", "make_config", "make_pools"]

NEAR_POOL_SEED, FAR_POOL_SEED = 5_000, 6_000

NUM_PAGES = 64

AUX_SLOTS = 8


def make_pools(*, apart: bool) -> Pools:
    """Return pools of 2 layers of 64 pages (K and V, 64 KiB a page, 16 MiB in all), and aux data: with each
    field in a region of its own (``apart``), or in rows."""
    layout = KVLayout.heads(layers=range(2), kv_heads=8, head_dim=128, page_size=32, num_pages=NUM_PAGES)
    fields = {"token": np.zeros(AUX_SLOTS, np.int64)} if apart else None
    aux = MetadataBuffers(AuxSchema((AuxField("token", "int64"),)), AUX_SLOTS, memory=fields)
    return Pools.allocate(layout, aux=aux)


def make_config(model: str, aux: Literal["auto", "engine"], staging: Literal["off", "always"]) -> Config:
    """Return a configuration with a quick heartbeat, for a transfer model, a way of aux rows, and whether all
    bytes go packed."""
    return Config(
        transfer=TransferConfig(model=TransferModel(model), aux=aux, staging=staging),
        timeouts=Timeouts(request=60.0),
        liveness=LivenessConfig(interval=0.2, max_failures=5),
    )
