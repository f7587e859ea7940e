"""An observer within the tests' servers: it writes down each room that ended, and can send wrong pages.

``SERVING_ROOMS`` names the file that gets a JSON line per room. While the file that ``SERVING_CORRUPT`` names
exists, every write reads other bytes than it was told: the control that must change the tokens.
"""

from __future__ import annotations

import json
import os

import attrs
import numpy as np

from pdcore.contract.engine import Peer, TransferEngine
from pdcore.contract.hookspecs import hookimpl
from pdcore.contract.outcome import Transfer
from pdcore.contract.regions import WriteBatch
from pdcore.events import Event, RoomEnded

ROOMS = os.environ.get("SERVING_ROOMS")
CORRUPT = os.environ.get("SERVING_CORRUPT")


@hookimpl
def pd_event(event: Event) -> None:
    """Append what became of a room; a line is one write, so that ranks may share the file."""
    if ROOMS is None or not isinstance(event, RoomEnded):
        return
    m, failure = event.metrics, event.failure
    line = {
        "role": event.node.role.value,
        "room": int(event.room),
        "status": m.status.name,
        "failure": failure.code.name if failure is not None else None,
        "why": str(failure) if failure is not None else None,
        "pages": m.pages,
        "nbytes": m.nbytes,
        "entries": m.entries,
        "waiting": m.waiting,
        "transfer": m.transfer,
        "total": m.total,
    }
    with open(ROOMS, "a") as file:
        file.write(json.dumps(line) + "\n")


def _elsewhere(engine: TransferEngine, batch: WriteBatch) -> WriteBatch:
    """The same targets, filled from the mirrored places of the source; aux stays as it is."""
    names = [engine.regions[region].name for region in batch.local_regions]
    counts = np.diff(batch.starts)
    of_cache = np.array([not name.startswith("aux") for name in names]).repeat(counts)
    mirrored = engine.region_lengths[batch.local_regions].repeat(counts) - batch.local_offsets - batch.lengths
    return attrs.evolve(batch, local_offsets=np.where(of_cache, mirrored, batch.local_offsets))


_write = TransferEngine.write


def _write_what_the_control_says(self: TransferEngine, peer: Peer, batch: WriteBatch) -> Transfer:
    if CORRUPT is not None and os.path.exists(CORRUPT):
        batch = _elsewhere(self, batch)
    return _write(self, peer, batch)


if CORRUPT is not None:
    TransferEngine.write = _write_what_the_control_says  # type: ignore[method-assign] # between core and engine
